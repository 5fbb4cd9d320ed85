"""Weights that MLX quantized (mlx-lm, "affine") -> their rows in float32.

X.weight is (rows, columns * bits / 32) words of 32 bits, a dense stream with neighbouring columns
first. X.scales and X.biases are (rows, groups). A weight is scale * code + bias, each step rounded to
the type of the scales, as in `affine_dequantize`:
https://github.com/ml-explore/mlx/blob/v0.25.0/mlx/ops.cpp
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeft.errors import InputError
from edgeft.weights.compressed_tensors_layout import WORD_BITS, unpacked
from edgeft.weights.dtypes import Array, Rows, stored_as
from edgeft.weights.quantized_layer import Layer, Tensors

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZE = 64
"""columns that share a scale where config.json does not say it"""


def layers(config: Mapping[str, Any], tensors: Tensors) -> dict[str, Layer]:
    """Name of a weight -> layer. InputError for another mode or a damaged layer."""
    if (mode := config.get("mode") or "affine") != "affine":
        raise InputError(
            f"MLX's mode {mode!r} cannot be read", "take the unquantized model, or one in affine"
        )
    stems = (name.removesuffix(".scales") for name in tensors.stored if name.endswith(".scales"))
    return {f"{stem}.weight": _layer(stem, config, tensors) for stem in stems}


def _layer(stem: str, config: Mapping[str, Any], tensors: Tensors) -> Layer:
    weight, *ends = parts = tuple(f"{stem}.{part}" for part in ("weight", "scales", "biases"))
    entry = config.get(stem)
    settings = entry if isinstance(entry, dict) else config
    try:
        (height, words), groups = tensors.stored[weight].shape, tensors.stored[ends[0]].shape
        width = groups[1] * int(settings.get("group_size") or GROUP_SIZE)
        bits, rest = divmod(words * WORD_BITS, width)
        fits = {groups, tensors.stored[ends[1]].shape} == {(height, groups[1])}
        if rest or bits not in BITS or not fits or tensors.stored[weight].dtype != "U32":
            raise ValueError(f"{words} words for {width} columns")
    except (ValueError, KeyError, TypeError, ZeroDivisionError, IndexError) as error:
        raise tensors.refusal(f"{stem}.scales", f"is of no weight of MLX: {error!r}") from None
    rounded = tensors.stored[ends[0]].dtype
    scales, biases = (tensors.grid(name) for name in ends)

    def rows(index: Rows) -> Array:
        numbers = np.arange(height)[index]
        codes = unpacked(tensors.raw(weight)[index], bits, width) + np.float32(2 ** (bits - 1))
        factors, offsets = (
            np.repeat(values.rows(numbers), width // groups[1], axis=1)
            for values in (scales, biases)
        )
        return stored_as(stored_as(codes * factors, rounded) + offsets, rounded)

    return Layer(f"INT{bits}", (height, width), parts, rows)
