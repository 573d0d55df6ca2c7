"""The write side of OUT: its tables, its files, and who may write them."""
