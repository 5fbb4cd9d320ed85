"""One file per target format; imported as edgeft.converters."""
