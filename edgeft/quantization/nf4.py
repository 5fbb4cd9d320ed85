"""4-bit weights (QLoRA, arXiv 2305.14314): what a weight is after bitsandbytes' NF4 or FP4 and back.

    seen = round_trip(weight)                    # the values that a QLoRA adapter was trained on

    view = quantized(rows, (40960, 16384))       # one pass over rows(0, 64), rows(64, 128), …
    view.rows(100, 164)                          # the same values, a few rows at a time

Blocks of 64 weights, counted through the whole matrix, share an absolute maximum; each weight
becomes the nearest of 16 levels. With double quantization the maxima themselves are stored in 8
bits, in blocks of 256, around their mean.

The values are, bit for bit, those of bitsandbytes 0.50.2 on an x86 CPU, float32. It quantizes a
weight in the type in which the model is loaded, and multiplies with these values rounded once to
the compute type, so for a model in bfloat16: `stored_as(round_trip(stored_as(w, "BF16")), "BF16")`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgeft.errors import InputError

Array = npt.NDArray[np.float32]
Rows = Callable[[int, int], Array]
"""rows(start, stop) of a matrix"""
Kind = Literal["nf4", "fp4"]

BLOCK = 64
"""weights per absolute maximum, by default"""
OUTER_BLOCK = 256
"""maxima per second-level scale"""
TINY = np.float32(1e-38)
"""the smallest maximum that is divided by"""

LEVELS: dict[Kind, Array] = {
    "nf4": np.array(
        [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
         -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
         0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
         0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0],
        np.float32,
    ),
    "fp4": np.array(
        [-12, -8, -6, -4, -3, -2, -0.0625, 0, 0.0625, 2, 3, 4, 6, 8, 12], np.float32
    ) / np.float32(12),
}  # fmt: skip

_STEP = 1 << 17
"""weights worked on at once: their temporaries stay in the cache"""


@dataclass(frozen=True)
class Quantized:
    """A matrix as its quantized form would be dequantized; made by `quantized`."""

    source: Rows
    shape: tuple[int, int]
    kind: Kind
    blocksize: int
    maxima: Array = field(repr=False)
    """each block's absolute maximum, which decides the levels"""
    scales: Array = field(repr=False)
    """what is left of it after double quantization, which multiplies them"""

    def rows(self, start: int, stop: int) -> Array:
        """Rows start to stop (exclusive), float32."""
        height, width = self.shape
        begin, end, block = start * width, stop * width, self.blocksize
        values = _flat(self.source, start, stop)
        seen = np.empty_like(values)
        # Pieces of whole blocks, and what the first and the last row hold of a block.
        whole = range(-(-begin // block) * block, end, max(1, _STEP // block) * block)
        cuts = sorted({begin, *whole, max(begin, end // block * block), end})
        for low, high in itertools.pairwise(cuts):
            blocks = slice(low // block, -(-high // block))
            piece = slice(low - begin, high - begin)
            maxima, scales = self.maxima[blocks, None], self.scales[blocks, None]
            weights = values[piece].reshape(len(maxima), -1)
            if blocks.stop * block > height * width:  # bitsandbytes divides in a last, short block
                near = _nearest(np.divide(weights, maxima), self.kind)
            else:
                inverse = np.divide(np.float32(1), np.maximum(maxima, TINY))
                near = _nearest(np.multiply(weights, inverse), self.kind)
            np.multiply(near, scales, out=seen[piece].reshape(near.shape))
        return seen.reshape(-1, width)


def quantized(
    rows: Rows,
    shape: tuple[int, int],
    kind: Kind = "nf4",
    double_quant: bool = True,
    blocksize: int = BLOCK,
    threads: int = 1,
) -> Quantized:
    """The matrix behind `rows` as it is seen after 4 bits; reads all of it once, in order.

    What is kept are two float32 per block. `threads` is torch's thread count while it quantized:
    from 32768 blocks on (2.1 million weights) the last bit of the mean over the maxima depends on
    it. InputError: a weight is NaN or infinite.
    """
    height, width = shape
    step = max(1, _STEP // max(1, width))
    maxima = np.empty(-(-height * width // blocksize), np.float32)
    done, rest = 0, np.empty(0, np.float32)
    for start in range(0, height, step):
        values = _flat(rows, start, min(start + step, height))
        if len(rest):
            values = np.concatenate([rest, values])
        count = len(values) // blocksize
        largest = np.abs(values[: count * blocksize]).reshape(count, blocksize).max(axis=1)
        maxima[done : done + count] = largest
        done, rest = done + count, values[count * blocksize :].copy()
    if len(rest):
        maxima[done] = np.maximum(np.abs(rest).max(), TINY)
    if not np.isfinite(maxima).all():
        row = int(np.argmin(np.isfinite(maxima))) * blocksize // width
        raise InputError(
            f"a weight is NaN or infinite, near row {row} of {height}",
            "such a model is broken and cannot be quantized",
        )
    scales = _round_trip_8bit(maxima, threads) if double_quant else maxima
    return Quantized(rows, shape, kind, blocksize, maxima, scales)


def round_trip(
    weight: Array,
    kind: Kind = "nf4",
    double_quant: bool = True,
    blocksize: int = BLOCK,
    threads: int = 1,
) -> Array:
    """`weight` quantized and dequantized, float32; see `quantized`."""
    matrix = weight.reshape(-1, weight.shape[-1])
    view = quantized(
        lambda start, stop: matrix[start:stop],
        matrix.shape, kind, double_quant, blocksize, threads,
    )  # fmt: skip
    return view.rows(0, len(matrix)).reshape(weight.shape)


def _flat(rows: Rows, start: int, stop: int) -> Array:
    return np.ascontiguousarray(rows(start, stop), np.float32).reshape(-1)


_CELLS = 1 << 16


def _nearest(scaled: Array, kind: Kind) -> Array:
    """The nearest level for values in [-1, 1]; halfway it is the lower one.

    A table over equal cells, in which NaN marks the cells near a border; those few values are
    searched for.
    """
    cell = scaled + np.float32(1)
    cell *= np.float32(_CELLS / 2)
    near = np.take(_cells(kind), cell.astype(np.intp), mode="clip")
    unsure = np.isnan(near)
    if unsure.any():
        near[unsure] = LEVELS[kind][np.searchsorted(_midpoints(LEVELS[kind]), scaled[unsure])]
    return near


@functools.cache
def _cells(kind: Kind) -> Array:
    borders = _midpoints(LEVELS[kind])
    middles = (np.arange(_CELLS + 1) + 0.5) * (2 / _CELLS) - 1
    table = LEVELS[kind][np.searchsorted(borders, middles)]
    at = ((borders.astype(np.float64) + 1) * (_CELLS / 2)).astype(np.intp)
    for beside in (-1, 0, 1):  # rounding in a value's cell number is far less than a cell
        table[at + beside] = np.nan
    return table


def _round_trip_8bit(values: Array, threads: int) -> Array:
    """The maxima around their mean, in bitsandbytes' blockwise dynamic 8-bit type."""
    offset = _torch_sum(values, threads) / np.float32(len(values))
    centred = values - offset
    padded = np.pad(centred, (0, -len(centred) % OUTER_BLOCK)).reshape(-1, OUTER_BLOCK)
    absmax = np.abs(padded).max(axis=1, keepdims=True)
    inverse = np.divide(1, absmax, out=np.zeros_like(absmax), where=absmax > 2.0**-128)
    scaled = np.clip(padded * inverse, -1, 1)
    # Its CPU kernel looks the code up in a table over [-1, 1]: not always the nearest.
    half = (scaled + np.float32(1)) * np.float32(0.5)
    cell = (half * np.float32(_CELLS - 1) + np.float32(0.5)).astype(np.intp)
    back: Array = dynamic_map()[_dynamic_codes()[cell]] * absmax + offset
    return back.reshape(-1)[: len(values)]


@functools.cache
def dynamic_map() -> Array:
    """The 256 values of the signed dynamic 8-bit type (arXiv 1511.04561, bitsandbytes' variant).

    Seven exponents; the one at 10^(e-6) has 2^e fractions on each side, cell centres of an even
    division of [0.1, 1]; then 0 and 1.
    """
    values = [0.0, 1.0]
    low, high = np.float32(0.1), np.float32(1)
    for exponent in range(7):
        count = 2**exponent
        step = np.float64((high - low) / np.float32(count))
        index = np.arange(count + 1)
        # torch.linspace: from the nearer end, multiplied and added with one rounding.
        lower, upper = low + step * index, high - step * (count - index)
        edges = np.where(index < (count + 1) // 2, lower, upper).astype(np.float32)
        centres = (edges[:-1] + edges[1:]) / np.float32(2) * np.float32(10.0 ** (exponent - 6))
        values += [*centres.tolist(), *(-centres).tolist()]
    return np.sort(np.array(values, np.float32))


@functools.cache
def _dynamic_codes() -> npt.NDArray[np.uint8]:
    """The code of each of 65536 cells (bitsandbytes' csrc/cpu_ops.cpp, `build_quantize_lut`)."""
    even = np.arange(0, 2 * _CELLS, 2).astype(np.float32)
    values = np.float32(-1) + even / np.float32(_CELLS - 1)
    codes: npt.NDArray[np.intp] = np.searchsorted(_midpoints(dynamic_map()), values)
    return codes.astype(np.uint8)


def _midpoints(levels: Array) -> Array:
    middle: Array = (levels[1:] + levels[:-1]) / np.float32(2)
    return middle


_GRAIN = 32768
"""numbers from which on torch sums in several threads"""
_LANES = 8
"""float32 in a vector of torch's sum on x86 (with AVX-512 too)"""


def _torch_sum(values: Array, threads: int) -> np.float32:
    """What torch.sum makes of a float32 vector on a CPU; rounding depends on the order.

    Each thread sums an equal share. A share is added up in vectors of 8, those in 4 interleaved
    sums, each of them in a cascade (aten/src/ATen/native: SumKernel.cpp, TensorIteratorReduce.cpp).
    """
    if threads > 1 and len(values) >= _GRAIN:
        share = -(-len(values) // min(threads, -(-len(values) // _GRAIN)))
        parts = [_torch_sum(values[i : i + share], 1) for i in range(0, len(values), share)]
        idle = [np.float32(0)] * (threads - len(parts))
        return _torch_sum(np.array(parts + idle), 1)
    if len(values) < _LANES:
        return np.float32(_interleaved(values[:, None])[0])
    whole = len(values) // _LANES * _LANES
    lanes = _interleaved(values[:whole].reshape(-1, _LANES))
    return np.float32(_running(np.concatenate([values[whole:], lanes])))


def _interleaved(vectors: Array) -> Array:
    count, width = len(vectors) // 4, vectors.shape[1]
    four = _cascade(vectors[: count * 4].reshape(count, 4 * width)).reshape(4, width)
    first = _running(np.concatenate([four[:1], vectors[count * 4 :]]))
    return _running(np.concatenate([first[None], four[1:]]))


def _cascade(rows: Array) -> Array:
    step = 1 << max(4, (len(rows) - 1).bit_length() // 4)
    sums = []
    for _ in range(3):
        whole = len(rows) // step * step
        sums.append(_running(rows[whole:]))
        rows = _running(rows[:whole].reshape(-1, step, rows.shape[1]).swapaxes(0, 1))
    return _running(np.stack([*sums, _running(rows)]))


def _running(rows: Array) -> Array:
    total = np.zeros(rows.shape[1:], np.float32)
    for row in rows:
        total += row
    return total
