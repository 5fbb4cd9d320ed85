"""Paired statistics behind a verdict; plain numbers in, plain numbers out."""
