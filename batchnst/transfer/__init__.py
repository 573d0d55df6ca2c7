"""The art: tensors in, tensors and losses out. Knows torch; no files, no Ray, no picture formats."""
