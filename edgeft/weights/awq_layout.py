"""Linear layers that AutoAWQ saved ("gemm" layout, 4 bits) -> their rows in float32.

X.qweight is (columns, rows / 8): a word holds eight neighbouring rows of one column, in the order 0 2
4 6 1 3 5 7. X.qzeros is (groups, rows / 8) in the same order, X.scales is (groups, rows). A weight is
scale * (code - zero), rounded to the type of the scales, as `dequantize_gemm` computes it.
https://github.com/casper-hansen/AutoAWQ/blob/v0.2.9/awq/utils/packing_utils.py
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft.errors import InputError
from edgeft.weights.dtypes import FLOAT_DTYPES, Array, Rows, stored_as, to_float32
from edgeft.weights.quantized_layer import Layer, Tensors

BITS, PER_WORD = 4, 8
PLACES = np.array([0, 4, 1, 5, 2, 6, 3, 7])
"""row within eight -> its place in the word"""


def layers(config: Mapping[str, Any], tensors: Tensors) -> dict[str, Layer]:
    """Name of a weight -> layer. InputError for another layout, other bits or a damaged layer."""
    layout = str(config.get("version") or "gemm").lower()
    bits = config.get("bits", config.get("w_bit", BITS))
    if layout != "gemm" or bits != BITS:
        raise InputError(
            f"the AWQ layout {layout!r} of {bits} bits cannot be read",
            "take the model in the layout gemm with 4 bits, or the unquantized one",
        )
    names = [name for name in tensors.stored if name.endswith(".qweight")]
    return {name.removesuffix("qweight") + "weight": _layer(name, tensors) for name in names}


def _layer(qweight: str, tensors: Tensors) -> Layer:
    stem = qweight.removesuffix("qweight")
    parts = (qweight, f"{stem}qzeros", f"{stem}scales")
    shapes = [tensors.stored[name].shape for name in parts if name in tensors.stored]
    try:
        (columns, words), (groups, zero_words), (scale_groups, rows_) = shapes
        fits = words == zero_words and rows_ == PER_WORD * words and groups == scale_groups
        dtypes = [tensors.stored[name].dtype for name in parts]
        if (
            not fits
            or columns % groups
            or dtypes[:2] != ["I32", "I32"]
            or dtypes[2] not in FLOAT_DTYPES
        ):
            raise ValueError
    except (ValueError, ZeroDivisionError):
        raise tensors.refusal(qweight, f"is no layer of AWQ: its tensors are {shapes}") from None
    scale_dtype = tensors.stored[parts[2]].dtype

    def rows(index: Rows) -> Array:
        numbers = np.arange(rows_)[index]
        codes, zeros = (_unpacked(tensors.raw(name), numbers) for name in parts[:2])
        scales = to_float32(tensors.raw(parts[2])[:, numbers], scale_dtype)
        steps = codes.reshape(groups, -1, len(numbers)) - zeros[:, None]
        values = (steps * scales[:, None]).reshape(columns, -1).T
        return stored_as(np.ascontiguousarray(values), scale_dtype)

    return Layer("AWQ", (rows_, columns), parts, rows)


def _unpacked(words: npt.NDArray[Any], numbers: npt.NDArray[np.intp]) -> Array:
    """(n, words) -> the codes of some rows, (n, rows)."""
    shifts = (BITS * PLACES[numbers % PER_WORD]).astype(np.int32)
    codes = (words[:, numbers // PER_WORD] >> shifts) & np.int32(2**BITS - 1)
    return codes.astype(np.float32)
