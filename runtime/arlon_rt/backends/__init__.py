"""Sessions: one file a backend."""
