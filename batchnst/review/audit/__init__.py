"""Every check that ledger, pictures and manifest agree. What it finds it names; it changes nothing."""
