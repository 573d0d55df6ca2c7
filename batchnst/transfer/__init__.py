"""Style transfer itself: tensors in, tensors and losses out. Knows torch, but no files, no Ray, no picture formats."""
