"""Base model + options -> a model with its trainable weights, and those weights on disk."""
