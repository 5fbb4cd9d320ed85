"""Data files -> conversations (`Example`) -> training and validation splits -> token ids and labels."""

from edgeft.data.encoding import (
    IGNORED,
    Encoded,
    LeftOut,
    calibration,
    encode,
    encode_all,
    text_calibration,
)
from edgeft.data.reading import read_text
from edgeft.data.rows import load_examples
from edgeft.data.splits import (
    fingerprint,
    load_splits,
    split,
    training_examples,
    validation_examples,
)

__all__ = [
    "IGNORED",
    "Encoded",
    "LeftOut",
    "calibration",
    "encode",
    "encode_all",
    "fingerprint",
    "load_examples",
    "load_splits",
    "read_text",
    "split",
    "text_calibration",
    "training_examples",
    "validation_examples",
]
