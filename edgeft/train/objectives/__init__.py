"""Rows of data -> batches, and a trainer that has the loss."""
