"""Serves the report as a live page, from the ledger alone; nothing is written."""
