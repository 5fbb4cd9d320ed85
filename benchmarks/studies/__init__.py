"""Comparisons for developers, with LOG.md; in no wheel."""
