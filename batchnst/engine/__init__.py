"""The run of a night: what is left, in which batches, on which workers."""
