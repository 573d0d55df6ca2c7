"""From the rows of a manifest to pairs. No torch."""
