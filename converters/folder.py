"""What Hugging Face folders have in common: weights in blocks of rows, config.json, the tokenizer."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgeft.adapter.tokenizer import tokenizer_files
from edgeft.errors import ProofError
from edgeft.merge.landing import sampled
from edgeft.merge.view import Merged
from edgeft.weights.checkpoint import Array, as_rows, stored_as

BLOCK = 4 << 20
"""values in memory at a time"""


def blocks(merged: Merged, name: str, stored: str) -> Iterator[Array]:
    """The tensor in blocks of rows; its sample is reported to the proof after the last."""
    shape = as_rows(merged.shapes[name])
    width = math.prod(shape[1:])
    step = max(1, BLOCK // width)
    sample = sampled(shape[0], width)
    given = []
    for start in range(0, shape[0], step):
        values = merged.rows(name, slice(start, start + step))
        with np.errstate(over="ignore"):
            whole = np.isfinite(stored_as(values, stored)).all()
        if not whole:
            raise ProofError(
                f"{name} cannot be stored as {stored}: not every value is finite in it",
                "--quant f32 or bf16 hold larger values; NaN is of no use in any",
            )
        given.append(values[sample[(sample >= start) & (sample < start + step)] - start])
        yield values
    rows = np.concatenate(given)
    merged.landed(name, lambda read: read(name, sample), rows, stored_as(rows, stored))


def finish(merged: Merged, out: Path, dtype: str, **more: Any) -> None:
    """config.json, with `dtype` and `more` entries, and the files of the tokenizer."""
    gone = ("torch_dtype", "quantization_config")
    config = {key: value for key, value in merged.config.items() if key not in gone}
    config |= {"dtype": dtype, **more}
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    for name in tokenizer_files(merged.tokenizer):
        (out / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(merged.tokenizer / name, out / name)
