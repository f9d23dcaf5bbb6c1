"""What a model is, in memory and on disk."""
