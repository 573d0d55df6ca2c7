"""What happened: Parquet in, Parquet out. Knows no torch and no Ray."""
