"""Rows of a weight -> their values after LLM.int8() and back (arXiv 2208.07339).

    values = round_trip(rows)                   # float32; those that a QLoRA in 8 bits was trained on

Each row has one scale, its absolute maximum / 127. The values are, bit for bit, those of bitsandbytes
0.50.2 (`Int8Params`, `int8_vectorwise_dequant`), which takes a weight as float16. Activations are not
quantized here.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgeft.errors import InputError

Array = npt.NDArray[np.float32]
_INVERSE_127 = np.float32(7.874015718698502e-3)


def round_trip(rows: Array) -> Array:
    """(rows, columns) float32 -> the same after int8. InputError beyond float16's range, and for NaN."""
    with np.errstate(over="ignore"):
        half = rows.astype(np.float16).astype(np.float32)
    if not np.isfinite(half).all():
        raise InputError("a weight is NaN or beyond the range of float16", "--quantization nf4")
    maxima = np.abs(half).max(axis=1, keepdims=True)
    divisors = np.where(maxima == 0, np.float32(1), maxima)
    codes = np.rint(half * (np.float32(127) / divisors))
    values: Array = codes * maxima * _INVERSE_127
    return values
