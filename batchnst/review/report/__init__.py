"""The page: what ran, what failed, every picture and every curve, in one file."""
