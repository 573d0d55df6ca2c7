"""Checks that ledger, pictures and manifest agree. An audit reports findings and changes nothing."""
