"""Data files -> conversations, splits and token ids (the Dataset noun)."""

from edgeft.data.encoding import Encoded, encode, encode_all
from edgeft.data.rows import load_examples, read_text
from edgeft.data.splits import (
    fingerprint,
    load_splits,
    split,
    training_examples,
    validation_examples,
)

__all__ = [
    "Encoded",
    "encode",
    "encode_all",
    "fingerprint",
    "load_examples",
    "load_splits",
    "read_text",
    "split",
    "training_examples",
    "validation_examples",
]
