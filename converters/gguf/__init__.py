"""Merged view -> a GGUF file."""
