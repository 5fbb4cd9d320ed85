"""Merged view -> a Hugging Face folder (safetensors), one block of rows in memory at a time.

    convert(merged, out, "f32")     # out: an existing empty folder

The weights are the float32 sums, rounded once to the type that was asked for.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgeft.adapter_tokenizer import tokenizer_files
from edgeft.checkpoint import Array, Spec, as_rows, stored_as, write_safetensors
from edgeft.errors import ProofError
from edgeft.merge import Merged, sampled

BLOCK = 4 << 20
"""values in memory at a time"""

_DTYPES = {"f32": ("F32", "float32"), "f16": ("F16", "float16"), "bf16": ("BF16", "bfloat16")}


def convert(merged: Merged, out: Path, quant: str, threads: int) -> dict[str, Any]:
    """Write the folder; returns facts for the manifest. `threads` is not needed here."""
    stored, named = _DTYPES[quant]
    specs = [Spec(name, stored, shape) for name, shape in merged.shapes.items()]

    blocks = (_blocks(merged, name, stored) for name in merged.shapes)
    write_safetensors(out / "model.safetensors", specs, blocks)
    config = {key: value for key, value in merged.config.items() if key != "torch_dtype"}
    config["dtype"] = named
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    for name in tokenizer_files(merged.tokenizer):
        (out / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(merged.tokenizer / name, out / name)
    return {"tensors": len(specs)}


def _blocks(merged: Merged, name: str, stored: str) -> Iterator[Array]:
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
