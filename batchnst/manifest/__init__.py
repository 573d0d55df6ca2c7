"""Read manifests as pairs, and write manifests. No torch."""
