"""Merged view -> Artifacts, one file per format; imported as edgeft.converters."""
