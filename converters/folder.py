"""Parts of every Hugging Face folder: weights in blocks of rows, config.json, the tokenizer."""

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
from edgeft.merge.landing import LandingProof, sampled_rows
from edgeft.merge.view import Merged
from edgeft.weights.checkpoint import Array, as_rows, stored_as

BLOCK_VALUES = 4 << 20
"""values of a tensor in memory at a time"""


def tensor_blocks(merged: Merged, name: str, stored: str, landing: LandingProof) -> Iterator[Array]:
    """Blocks of rows of a merged tensor, float32; the proof gets its sampled rows after the last.

    `stored`: type in safetensors; ProofError where it holds a value only as infinity or NaN.
    """
    shape = as_rows(merged.shapes[name])
    columns = math.prod(shape[1:])
    step = max(1, BLOCK_VALUES // columns)
    sample = sampled_rows(shape[0], columns)
    summed = []
    for start in range(0, shape[0], step):
        values = merged.rows(name, slice(start, start + step))
        with np.errstate(over="ignore"):
            finite = np.isfinite(stored_as(values, stored)).all()
        if not finite:
            raise ProofError(
                f"{name} cannot be stored as {stored}: not every value is finite in it",
                "--quant f32 or bf16 hold larger values; NaN is of no use in any",
            )
        summed.append(values[sample[(sample >= start) & (sample < start + step)] - start])
        yield values
    rows = np.concatenate(summed)
    landing.add(name, *merged.addends(name, sample), rows, stored_as(rows, stored))


def finish(merged: Merged, out: Path, dtype: str, **more: Any) -> None:
    """Write config.json, with `dtype` and `more` entries, and the files of the tokenizer."""
    replaced = ("torch_dtype", "quantization_config")
    config = {key: value for key, value in merged.config.items() if key not in replaced}
    config |= {"dtype": dtype, **more}
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    for name in tokenizer_files(merged.tokenizer):
        (out / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(merged.tokenizer / name, out / name)
