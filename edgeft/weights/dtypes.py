"""Stored numbers of safetensors' types <-> float32.

to_float32(raw, "BF16")            # raw: uint16; exact
stored_as(values, "F16")           # float32 values after they were rounded to a type
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Rows = slice | npt.NDArray[np.intp]
"""index of the rows of a tensor as (rows, columns), or of the elements of a vector"""

FLOAT_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""types of unquantized weights -> numpy's type of their stored form"""
FLOAT8_DTYPES = {"F8_E4M3": (4, 3), "F8_E5M2": (5, 2), "F8_E8M0": (8, 0)}
"""types of 8 bits -> their bits of exponent and mantissa"""
WRITE_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I32": "<i4"}
STORED_DTYPES = FLOAT_DTYPES | dict.fromkeys((*FLOAT8_DTYPES, "U8", "BOOL"), "u1") | {
    "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8", "U16": "<u2", "U32": "<u4", "U64": "<u8",
}  # fmt: skip
"""every type that is read -> numpy's type of its stored form"""


def as_rows(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(…, columns) -> (rows, columns); a vector stays a vector."""
    return (math.prod(shape[:-1]), shape[-1]) if len(shape) > 1 else shape or (1,)


def to_float32(raw: npt.NDArray[Any], dtype: str) -> Array:
    """Stored values -> float32 (exact for F32, F16, BF16 and the types of 8 bits)."""
    if dtype == "BF16":
        wide = raw.astype("<u4") << np.uint32(16)
        return wide.view(np.float32)
    if dtype in FLOAT8_DTYPES:
        values: Array = float8_values(dtype)[raw]
        return values
    return raw.astype(np.float32)


def from_float32(values: Array, dtype: str) -> npt.NDArray[Any]:
    """Round to nearest even. BF16 is returned as uint16 bits, integers unchanged."""
    if dtype == "BF16":
        bits = values.astype(np.float32, copy=False).view(np.uint32)
        bits = np.where(np.isnan(values), np.uint32(0x7FC00000), bits)  # rounding up would wrap it
        odd = (bits >> np.uint32(16)) & np.uint32(1)
        return ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype("<u2")
    return values.astype(WRITE_DTYPES[dtype])


def stored_as(values: Array, dtype: str) -> Array:
    """`values` after they were stored as `dtype`, float32."""
    return to_float32(from_float32(values, dtype), dtype)


@functools.cache
def float8_values(dtype: str) -> Array:
    """The values of the 256 codes of a type of 8 bits.

    E4M3 has no infinity and one NaN for each sign, E5M2 is cut from float16, E8M0 is a power of two
    (OCP 8-bit Floating Point Specification; OCP Microscaling Formats).
    """
    codes = np.arange(256)
    if dtype == "F8_E5M2":
        return (codes.astype(np.uint16) << 8).view(np.float16).astype(np.float32)
    if dtype == "F8_E8M0":
        powers = np.ldexp(np.float32(1), np.minimum(codes, 254) - 127).astype(np.float32)
        return np.where(codes == 255, np.float32(np.nan), powers)
    sign = np.where(codes & 128, -1.0, 1.0)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    normal = np.ldexp(1 + mantissa / 8, exponent - 7)
    values = sign * np.where(exponent == 0, np.ldexp(mantissa / 8, -6), normal)
    return np.where(codes & 127 == 127, np.nan, values).astype(np.float32)
