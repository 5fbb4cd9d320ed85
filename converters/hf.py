"""Merged view -> a Hugging Face folder (safetensors), one tensor in memory at a time.

    convert(merged, out, "f32")     # out: an existing empty folder

The weights are the float32 sums, rounded once to the type that was asked for.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft.checkpoint import Spec, stored_as, write_safetensors
from edgeft.merge import Merged

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json",
    "generation_config.json", "tokenizer.model",
)  # fmt: skip
_DTYPES = {"f32": ("F32", "float32"), "f16": ("F16", "float16"), "bf16": ("BF16", "bfloat16")}


def convert(merged: Merged, out: Path, quant: str, threads: int) -> dict[str, Any]:
    """Write the folder; returns facts for the manifest. `threads` is not needed here."""
    stored, named = _DTYPES[quant]
    specs = [Spec(name, stored, shape) for name, shape in merged.shapes.items()]

    def arrays() -> Iterator[npt.NDArray[np.float32]]:
        for name in merged.shapes:
            values = merged.tensor(name)
            if merged.adapted(name):
                given = values[merged.sample(name)]
                merged.landed(name, given, stored_as(given, stored))
            yield values

    write_safetensors(out / "model.safetensors", specs, arrays())
    config = {key: value for key, value in merged.config.items() if key != "torch_dtype"}
    config["dtype"] = named
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    for name in TOKENIZER_FILES:
        if (merged.base / name).is_file():
            shutil.copyfile(merged.base / name, out / name)
    return {"tensors": len(specs)}
