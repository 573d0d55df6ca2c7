"""The pictures of OUT in each of their forms: files of their own, rows of Parquet files, members of tar archives."""
