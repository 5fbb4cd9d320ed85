"""The Merged view -> a GGUF file."""
