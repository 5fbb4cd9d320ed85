"""Data files -> what is wrong with them -> conversations (`Example`) -> splits -> token ids and labels."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from edgeft.data.options import CheckOptions, CleanOptions, MixOptions, SplitOptions

if TYPE_CHECKING:
    from edgeft.data.checking import DataReport, check
    from edgeft.data.cleaning import clean
    from edgeft.data.encoded_rows import IGNORED, Encoded
    from edgeft.data.encoding import (
        LeftOut,
        calibration,
        encode,
        encode_all,
        text_calibration,
    )
    from edgeft.data.mixing import mix
    from edgeft.data.partition import split_files
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
    "CheckOptions",
    "CleanOptions",
    "DataReport",
    "Encoded",
    "LeftOut",
    "MixOptions",
    "SplitOptions",
    "calibration",
    "check",
    "clean",
    "encode",
    "encode_all",
    "fingerprint",
    "load_examples",
    "load_splits",
    "mix",
    "read_text",
    "split",
    "split_files",
    "text_calibration",
    "training_examples",
    "validation_examples",
]

_MODULES = {
    "checking": "DataReport check",
    "cleaning": "clean",
    "encoded_rows": "IGNORED Encoded",
    "encoding": "LeftOut calibration encode encode_all text_calibration",
    "mixing": "mix",
    "partition": "split_files",
    "reading": "read_text",
    "rows": "load_examples",
    "splits": "fingerprint load_splits split training_examples validation_examples",
}
"""module -> the public names in it"""


def __getattr__(name: str) -> Any:
    """Imports the module of a name on first use: the options alone are for `--help`."""
    for module, names in _MODULES.items():
        if name in names.split():
            return getattr(importlib.import_module(f"edgeft.data.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
