"""How it gets done: the room that brings transfer, collection and ledger together."""
