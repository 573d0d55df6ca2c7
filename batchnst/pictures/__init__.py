"""Pictures from bytes to arrays, and back. No torch."""
