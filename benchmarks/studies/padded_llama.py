"""A Llama model -> a folder of the same model with zero padding to widths that are multiples of 256.

    folder = pad(resolve("smollm2-135m-dithered"), Path("padded"))

A K-quant block covers 256 columns. For other widths llama-quantize falls back to other types, so a small
model does not measure K-quants. The padded model gives the same answers: the added channels are always
zero, the added heads are never read, and the norms are scaled for the added channels.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from edgeft.adapter.tokenizer import tokenizer_files
from edgeft.errors import FormatError
from edgeft.files import read_json
from edgeft.weights.checkpoint import Array, Checkpoint, Spec, write_safetensors

WIDTH_MULTIPLE = 256
"""columns of a K-quant block"""


def pad(base: Path, out: Path) -> Path:
    """Write the folder `out`; FormatError for another family or a shape that cannot be padded."""
    config = read_json(base / "config.json")
    if config.get("architectures") != ["LlamaForCausalLM"]:
        raise FormatError("only a Llama model can be padded")
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head, each = hidden // heads, heads // config["num_key_value_heads"]
    wide, ffn = _up(hidden), _up(config["intermediate_size"])
    if wide % (head * each):
        raise FormatError(f"{wide} is no whole number of groups of {each} heads")
    kv = wide // each
    shapes: dict[str, tuple[int, ...]] = {
        "q_proj": (wide, wide), "k_proj": (kv, wide), "v_proj": (kv, wide), "o_proj": (wide, wide),
        "gate_proj": (ffn, wide), "up_proj": (ffn, wide), "down_proj": (wide, ffn),
    }  # fmt: skip
    weights = Checkpoint(base)

    def padded(name: str) -> Array:
        values = weights.read(name)
        shape = shapes.get(name.split(".")[-2], (*values.shape[:-1], wide))
        # RMS norms now average over more channels.
        values = values * np.float32((hidden / wide) ** 0.5) if values.ndim == 1 else values
        return np.pad(values, [(0, n - old) for n, old in zip(shape, values.shape, strict=True)])

    out.mkdir(parents=True, exist_ok=True)
    arrays = {name: padded(name) for name in weights.tensors}
    specs = [Spec(name, "F32", array.shape) for name, array in arrays.items()]
    write_safetensors(out / "model.safetensors", specs, arrays.values())
    changed: dict[str, Any] = {
        "hidden_size": wide, "intermediate_size": ffn, "head_dim": head,
        "num_attention_heads": wide // head, "num_key_value_heads": kv // head,
        "rms_norm_eps": config["rms_norm_eps"] * hidden / wide, "dtype": "float32",
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(config | changed, indent=1))
    for name in tokenizer_files(base):
        shutil.copyfile(base / name, out / name)
    return out


def _up(width: int) -> int:
    return -(-width // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
