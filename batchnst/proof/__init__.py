"""Choose the look before the night: a few pairs in a grid of settings, on one page."""
