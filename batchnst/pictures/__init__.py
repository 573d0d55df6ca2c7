"""Decode pictures to arrays, and encode arrays as picture files. No torch."""
