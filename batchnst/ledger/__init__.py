"""The write side of OUT: the ledger's tables and files, and the claim that says which run may write them."""
