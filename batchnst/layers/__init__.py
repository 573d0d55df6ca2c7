"""What the layers of a network see, on one sheet."""
