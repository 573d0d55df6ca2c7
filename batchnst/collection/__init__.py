"""What there is to do: manifests, pictures, storage. Knows no torch."""
