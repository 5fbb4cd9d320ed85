"""Merged view -> a Hugging Face folder (safetensors), one block of rows in memory at a time.

    convert(merged, out, "f32")     # out: an existing empty folder

The weights are the float32 sums, rounded once to the type that was asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeft.converters.folder import blocks, finish
from edgeft.merge.view import Merged
from edgeft.weights.checkpoint import Spec, write_safetensors

_DTYPES = {"f32": ("F32", "float32"), "f16": ("F16", "float16"), "bf16": ("BF16", "bfloat16")}


def convert(merged: Merged, out: Path, quant: str, threads: int) -> dict[str, Any]:
    """Write the folder; returns facts for the manifest. `threads` is not needed here."""
    stored, named = _DTYPES[quant]
    specs = [Spec(name, stored, shape) for name, shape in merged.shapes.items()]
    arrays = (blocks(merged, name, stored) for name in merged.shapes)
    write_safetensors(out / "model.safetensors", specs, arrays)
    finish(merged, out, named)
    return {"tensors": len(specs)}
