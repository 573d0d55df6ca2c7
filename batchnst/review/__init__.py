"""The morning after: reads what is in OUT, and never imports the engine."""
