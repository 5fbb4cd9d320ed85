"""Weights that bitsandbytes saved in 4 bits (NF4, FP4) or 8 bits (LLM.int8) -> their rows in float32.

4 bits: X.weight holds two codes in a byte, the first in the high half. X.weight.absmax holds the
maximum of each block, in float32, or in 8 bits with nested_absmax and nested_quant_map (double
quantization). The JSON in X.weight.quant_state.bitsandbytes__nf4 holds block sizes, shape and type.
https://github.com/bitsandbytes-foundation/bitsandbytes/blob/0.45.0/bitsandbytes/functional.py#L590-L780

8 bits: X.weight is int8, X.SCB the absolute maximum of each row (arXiv 2208.07339).

The values are those of `bitsandbytes.functional.dequantize_4bit`, in the type that was quantized, and
of `int8_vectorwise_dequant`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft.weights.dtypes import Array, Rows, stored_as, to_float32
from edgeft.weights.quantized_layer import Layer, Tensors

STATE = ".quant_state.bitsandbytes__"
"""between the name of a weight and its type, in the name of the tensor with its settings"""
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
INVERSE_127 = np.float32(7.874015718698502e-3)
ROW_MAJOR = 0
"""`weight_format` of int8 rows one after the other; the others were made for one kind of GPU"""


def layers(config: Mapping[str, Any], tensors: Tensors) -> dict[str, Layer]:
    """Name of a weight -> layer. InputError for a damaged layer or another order of int8."""
    weights: dict[str, Layer] = {}
    for name in tensors.stored:
        weight, mark, quant_type = name.partition(STATE)
        if mark:
            weights[weight] = _four_bit(weight, quant_type.upper(), name, tensors)
        elif name.endswith(".SCB"):
            weight = name.removesuffix("SCB") + "weight"
            weights[weight] = _eight_bit(weight, name, tensors)
    return weights


def _four_bit(weight: str, dtype: str, state_name: str, tensors: Tensors) -> Layer:
    parts = tuple(
        name for name in (weight, *(f"{weight}.{part}" for part in (
            "absmax", "quant_map", "nested_absmax", "nested_quant_map")), state_name)
        if name in tensors.stored
    )  # fmt: skip
    try:
        state = json.loads(tensors.raw(state_name).tobytes())
        height, width = (int(size) for size in state["shape"])
        rounded, block = DTYPES[state["dtype"]], int(state["blocksize"])
        packed = tensors.raw(weight).reshape(-1).view(np.uint8)
        levels = tensors.values(f"{weight}.quant_map")
        blocks = math.prod(tensors.stored[f"{weight}.absmax"].shape)
        fits = len(packed) == -(-height * width // 2) and blocks == -(-height * width // block)
        if not fits or len(levels) != 16 or dtype not in ("NF4", "FP4"):
            raise ValueError(f"{len(packed)} bytes and {blocks} blocks for {height} x {width}")
        _check_nested(weight, state, blocks, tensors)
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:
        raise tensors.refusal(weight, f"is no weight of bitsandbytes: {error!r}") from None
    maxima = partial(_maxima, weight, state, tensors)

    def rows(index: Rows) -> Array:
        numbers = np.arange(height)[index]
        codes = _codes(packed, numbers, width)
        scales = _spread(maxima, numbers, width, block)
        return stored_as(levels[codes] * scales, rounded)

    return Layer(dtype, (height, width), parts, rows)


def _check_nested(weight: str, state: Mapping[str, Any], blocks: int, tensors: Tensors) -> None:
    """ValueError, KeyError or TypeError where the maxima cannot be computed."""
    nested = f"{weight}.nested_absmax" in tensors.stored
    fits = tensors.stored[f"{weight}.absmax"].dtype == ("U8" if nested else "F32")
    if nested:
        outer = tensors.stored[f"{weight}.nested_absmax"].shape
        levels = tensors.stored[f"{weight}.nested_quant_map"].shape
        block, _ = int(state["nested_blocksize"]), float(state["nested_offset"])
        fits = fits and 0 < block < 1 << 31 and outer == (-(-blocks // block),) and levels == (256,)
    if not fits:
        raise ValueError("its maxima do not fit together")


def _maxima(
    weight: str, state: Mapping[str, Any], tensors: Tensors, blocks: npt.NDArray[np.intp]
) -> Array:
    """The absolute maximum of some blocks."""
    stored = tensors.raw(f"{weight}.absmax").reshape(-1)[blocks]
    if f"{weight}.nested_absmax" not in tensors.stored:
        return to_float32(stored, "F32")
    outer = tensors.raw(f"{weight}.nested_absmax")[blocks // int(state["nested_blocksize"])]
    levels = tensors.values(f"{weight}.nested_quant_map")
    maxima: Array = levels[stored] * outer + np.float32(state["nested_offset"])
    return maxima


def _codes(
    packed: npt.NDArray[np.uint8], numbers: npt.NDArray[np.intp], width: int
) -> npt.NDArray[np.uint8]:
    """The codes of some rows, (rows, columns)."""
    if width % 2 == 0:
        some = packed.reshape(-1, width // 2)[numbers]
        return np.stack([some >> 4, some & 15], axis=-1).reshape(len(numbers), width)
    places = numbers[:, None] * width + np.arange(width)
    shifts = (4 * (1 - places % 2)).astype(np.uint8)
    codes: npt.NDArray[np.uint8] = (packed[places // 2] >> shifts) & np.uint8(15)
    return codes


def _spread(
    maxima: Callable[[npt.NDArray[np.intp]], Array],
    numbers: npt.NDArray[np.intp],
    width: int,
    block: int,
) -> Array:
    """The maximum of each weight's block, for some rows. Blocks are counted through the matrix."""
    first = numbers[:, None] * width
    if width % block == 0:
        return np.repeat(maxima((first + np.arange(0, width, block)) // block), block, axis=1)
    return maxima((first + np.arange(width)) // block)


def _eight_bit(weight: str, scale_name: str, tensors: Tensors) -> Layer:
    order = weight + "_format"
    info = tensors.stored.get(weight)
    if info is None or info.dtype != "I8" or len(info.shape) != 2:
        raise tensors.refusal(scale_name, "has no int8 weight beside it")
    if order in tensors.stored and int(tensors.raw(order).reshape(-1)[0]) != ROW_MAJOR:
        raise tensors.refusal(
            weight, "is ordered for one kind of GPU; load and save it again there"
        )
    scales = tensors.values(scale_name).reshape(-1, 1)
    height, width = info.shape
    if len(scales) != height:
        raise tensors.refusal(scale_name, f"has {len(scales)} maxima for {height} rows")

    def rows(index: Rows) -> Array:
        return tensors.raw(weight)[index].astype(np.float32) * scales[index] * INVERSE_127

    parts = tuple(name for name in (weight, scale_name, order) if name in tensors.stored)
    return Layer("INT8", (height, width), parts, rows)
