"""Linear layers that are stored in 8-bit floating point with scales -> their rows in float32.

X.weight is F8_E4M3 (or E5M2). Its scale is multiplied: one for the tensor, one for each row, or one
for each block of rows and columns, under the names weight_scale_inv (DeepSeek, Qwen, Mistral) or
weight_scale (fbgemm, ModelOpt). Scales may be powers of two in one byte (MXFP8).

The values are those of transformers' `Fp8Dequantize` in a float32 model:
https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/integrations/finegrained_fp8.py
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeft.weights.dtypes import FLOAT8_DTYPES, Array, Rows, to_float32
from edgeft.weights.quantized_layer import Layer, Tensors

SCALES = ("weight_scale_inv", "weight_scale")
"""last words of a scale's name"""


def layers(config: Mapping[str, Any], tensors: Tensors) -> dict[str, Layer]:
    """Name of a weight -> layer. InputError where a scale does not fit its weight."""
    block = config.get("weight_block_size")
    weights = {}
    for name, info in tensors.stored.items():
        scales = [f"{name.removesuffix('weight')}{scale}" for scale in SCALES]
        scale_name = next((scale for scale in scales if scale in tensors.stored), None)
        if info.dtype in FLOAT8_DTYPES and len(info.shape) == 2 and name.endswith("weight"):
            if scale_name is None:
                raise tensors.refusal(name, f"is stored as {info.dtype} and has no scale")
            weights[name] = _layer(name, scale_name, block, tensors)
    return weights


def _layer(name: str, scale_name: str, block: Any, tensors: Tensors) -> Layer:
    info = tensors.stored[name]
    height, width = info.shape
    scales = tensors.grid(scale_name)
    steps = tuple(
        block_size(size, count, block[axis] if isinstance(block, list) else None)
        for axis, (size, count) in enumerate(zip((height, width), scales.shape, strict=True))
    )
    if 0 in steps:
        raise tensors.refusal(scale_name, f"is {scales.shape} for {height} x {width} weights")

    def rows(index: Rows) -> Array:
        numbers = np.arange(height)[index]
        factors = np.repeat(scales.rows(numbers // steps[0]), steps[1], axis=1)[:, :width]
        return to_float32(tensors.raw(name)[index], info.dtype) * factors

    return Layer("FP8", (height, width), (name, scale_name), rows)


def block_size(size: int, count: int, configured: int | None) -> int:
    """Rows (or columns) that share a scale; 0 where `count` scales do not fit."""
    if configured and -(-size // configured) == count:
        return configured
    return size // count if count and size % count == 0 else 0
