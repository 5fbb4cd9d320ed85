"""Task accuracy of an artifact: items, scorers, workers."""
