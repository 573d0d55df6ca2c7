"""What the layers of a network see, on one sheet: a page or a picture."""
