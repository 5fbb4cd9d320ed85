"""4-bit NormalFloat (QLoRA, arXiv 2305.14314): what a weight looks like after NF4 and back.

    seen = round_trip(weight)          # the values that a QLoRA adapter was trained on

Blocks of 64 weights share an absolute maximum; each weight becomes the nearest of 16 levels. With
double quantization the maxima themselves are stored in 8 bits, in blocks of 256, around their
mean. The levels and the 8-bit map are those of bitsandbytes (functional.py: `get_4bit_type`,
`create_dynamic_map`), which is the oracle of the tests.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

BLOCK = 64
"""weights per absolute maximum"""
OUTER_BLOCK = 256
"""maxima per second-level scale"""

LEVELS = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
     -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
     0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
     0.7229568362236023, 1.0],
    np.float32,
)  # fmt: skip


def round_trip(weight: Array, double_quant: bool = True) -> Array:
    """`weight` (any shape) quantized to NF4 and dequantized, float32."""
    flat = np.ascontiguousarray(weight, np.float32).reshape(-1)
    padded = np.pad(flat, (0, -len(flat) % BLOCK)).reshape(-1, BLOCK)
    absmax = np.abs(padded).max(axis=1)
    scale = np.divide(1, absmax, out=np.zeros_like(absmax), where=absmax > 2.0**-128)
    codes = _nearest(padded * scale[:, None])
    if double_quant:
        absmax = _round_trip_8bit(absmax)
    seen: Array = LEVELS[codes] * absmax[:, None]
    return seen.reshape(-1)[: len(flat)].reshape(weight.shape)


def _nearest(scaled: Array) -> npt.NDArray[np.uint8]:
    """Index of the nearest level for values in [-1, 1].

    A table over 8192 equal cells gives the level of a cell's lower edge, and one comparison with
    the border above settles the rest, because no cell holds two borders: 3 x searchsorted's speed.
    """
    borders, table = _cells()
    cell = ((scaled + np.float32(1)) * np.float32(_CELLS / 2)).astype(np.int32)
    low = table[cell]
    codes: npt.NDArray[np.uint8] = low + (scaled > borders[low])
    return codes


_CELLS = 8192


@functools.cache
def _cells() -> tuple[Array, npt.NDArray[np.uint8]]:
    borders = np.append(_midpoints(LEVELS), np.float32(np.inf))
    # One cell early, so that rounding in the cell's number cannot skip a border.
    edges = np.linspace(-1, 1, _CELLS + 1, dtype=np.float32) - np.float32(2 / _CELLS)
    return borders, np.searchsorted(borders[:-1], edges).astype(np.uint8)


def _round_trip_8bit(values: Array) -> Array:
    """The maxima around their mean, in bitsandbytes' blockwise dynamic 8-bit type."""
    offset = values.mean(dtype=np.float32)
    centred = values - offset
    padded = np.pad(centred, (0, -len(centred) % OUTER_BLOCK)).reshape(-1, OUTER_BLOCK)
    absmax = np.abs(padded).max(axis=1, keepdims=True)
    scaled = np.divide(padded, absmax, out=np.zeros_like(padded), where=absmax > 0)
    levels = dynamic_map()
    back: Array = levels[np.searchsorted(_midpoints(levels), scaled)] * absmax + offset
    return back.reshape(-1)[: len(values)]


def _midpoints(levels: Array) -> Array:
    middle: Array = (levels[1:] + levels[:-1]) / np.float32(2)
    return middle


@functools.cache
def dynamic_map() -> Array:
    """The 256 values of the signed dynamic 8-bit type (arXiv 1511.04561, bitsandbytes' variant).

    Seven exponents; the one at 10^(e-6) has 2^e fractions on each side, cell centres of an even
    division of [0.1, 1]; then 0 and 1.
    """
    values = [0.0, 1.0]
    for exponent in range(7):
        edges = np.linspace(0.1, 1, 2**exponent + 1, dtype=np.float32)
        centres = (edges[:-1] + edges[1:]) / 2 * np.float32(10.0 ** (exponent - 6))
        values += [*centres.tolist(), *(-centres).tolist()]
    return np.sort(np.array(values, np.float32))
