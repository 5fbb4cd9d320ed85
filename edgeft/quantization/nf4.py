"""A weight -> its values after bitsandbytes' NF4 or FP4 and back (QLoRA, arXiv 2305.14314).

    values = round_trip(weight)                  # those that a QLoRA adapter was trained on

    view = quantized(rows, (40960, 16384))       # one pass over rows(0, 64), rows(64, 128), …
    view.rows(100, 164)                          # the same values, a few rows at a time

Blocks of 64 weights, counted through the whole matrix, share an absolute maximum. Each weight becomes
the nearest of 16 levels. With double quantization the maxima are stored in 8 bits, in blocks of 256,
around their mean.

The values are, bit for bit, those of bitsandbytes 0.50.2 on an x86 CPU, in float32. bitsandbytes
quantizes a weight in the type of the loaded model, and rounds these values to the compute type before
it multiplies. For a model in bfloat16 that is
`stored_as(round_trip(stored_as(w, "BF16")), "BF16")`.
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
QuantType = Literal["nf4", "fp4"]

BLOCK = 64
"""default number of weights per absolute maximum"""
OUTER_BLOCK = 256
"""maxima per scale of the second level"""
MIN_DIVISOR = np.float32(1e-38)
"""smaller maxima are divided by this instead"""

LEVELS: dict[QuantType, Array] = {
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

_STEP_VALUES = 1 << 17
"""weights that are computed at once, so that temporaries stay in the CPU's cache"""


@dataclass(frozen=True)
class Quantized:
    """A matrix after quantization, computed row by row; made by `quantized`."""

    source: Rows
    shape: tuple[int, int]
    quant_type: QuantType
    blocksize: int
    maxima: Array = field(repr=False)
    """absolute maximum of each block; decides the levels"""
    scales: Array = field(repr=False)
    """the maxima after double quantization; multiply the levels"""

    def rows(self, start: int, stop: int) -> Array:
        """Rows start to stop (exclusive), float32 (rows, columns)."""
        height, width = self.shape
        begin, end, block = start * width, stop * width, self.blocksize
        values = _flat(self.source, start, stop)
        result = np.empty_like(values)
        # Pieces of whole blocks, and what the first and the last row hold of a block.
        whole = range(-(-begin // block) * block, end, max(1, _STEP_VALUES // block) * block)
        cuts = sorted({begin, *whole, max(begin, end // block * block), end})
        for low, high in itertools.pairwise(cuts):
            blocks = slice(low // block, -(-high // block))
            piece = slice(low - begin, high - begin)
            maxima, scales = self.maxima[blocks, None], self.scales[blocks, None]
            weights = values[piece].reshape(len(maxima), -1)
            if blocks.stop * block > height * width:  # bitsandbytes divides in a last, short block
                near = _nearest(np.divide(weights, maxima), self.quant_type)
            else:
                inverse = np.divide(np.float32(1), np.maximum(maxima, MIN_DIVISOR))
                near = _nearest(np.multiply(weights, inverse), self.quant_type)
            np.multiply(near, scales, out=result[piece].reshape(near.shape))
        return result.reshape(-1, width)


def quantized(
    rows: Rows,
    shape: tuple[int, int],
    quant_type: QuantType = "nf4",
    double_quant: bool = True,
    blocksize: int = BLOCK,
    threads: int = 1,
) -> Quantized:
    """The matrix of `shape` whose rows `rows` gives, after 4 bits; reads all of it once, in order.

    Two float32 per block are kept. `threads` is torch's number of threads while bitsandbytes
    quantized: from 32768 blocks on (2.1 million weights) the last bit of the mean over the maxima
    depends on it. InputError where a weight is NaN or infinite.
    """
    height, width = shape
    step = max(1, _STEP_VALUES // max(1, width))
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
        maxima[done] = np.maximum(np.abs(rest).max(), MIN_DIVISOR)
    if not np.isfinite(maxima).all():
        row = int(np.argmin(np.isfinite(maxima))) * blocksize // width
        raise InputError(
            f"a weight is NaN or infinite, near row {row} of {height}",
            "such a model is broken and cannot be quantized",
        )
    scales = _round_trip_8bit(maxima, threads) if double_quant else maxima
    return Quantized(rows, shape, quant_type, blocksize, maxima, scales)


def round_trip(
    weight: Array,
    quant_type: QuantType = "nf4",
    double_quant: bool = True,
    blocksize: int = BLOCK,
    threads: int = 1,
) -> Array:
    """`weight` after 4 bits, float32 in its shape; see `quantized`."""
    matrix = weight.reshape(-1, weight.shape[-1])
    view = quantized(
        lambda start, stop: matrix[start:stop],
        matrix.shape, quant_type, double_quant, blocksize, threads,
    )  # fmt: skip
    return view.rows(0, len(matrix)).reshape(weight.shape)


def _flat(rows: Rows, start: int, stop: int) -> Array:
    return np.ascontiguousarray(rows(start, stop), np.float32).reshape(-1)


_CELLS = 1 << 16
"""cells of a table over [-1, 1]"""


def _nearest(scaled: Array, quant_type: QuantType) -> Array:
    """The nearest level for values in [-1, 1]; of two equally near the lower one.

    It is looked up in a table of equal cells. NaN marks the cells at a border between two levels;
    for those few values the level is searched.
    """
    cell = scaled + np.float32(1)
    cell *= np.float32(_CELLS / 2)
    near = np.take(_cells(quant_type), cell.astype(np.intp), mode="clip")
    unsure = np.isnan(near)
    if unsure.any():
        near[unsure] = LEVELS[quant_type][
            np.searchsorted(_midpoints(LEVELS[quant_type]), scaled[unsure])
        ]
    return near


@functools.cache
def _cells(quant_type: QuantType) -> Array:
    borders = _midpoints(LEVELS[quant_type])
    middles = (np.arange(_CELLS + 1) + 0.5) * (2 / _CELLS) - 1
    table = LEVELS[quant_type][np.searchsorted(borders, middles)]
    at = ((borders.astype(np.float64) + 1) * (_CELLS / 2)).astype(np.intp)
    for beside in (-1, 0, 1):  # the rounding error of a cell's number is far less than a cell
        table[at + beside] = np.nan
    return table


def _round_trip_8bit(values: Array, threads: int) -> Array:
    """Maxima after bitsandbytes' blockwise dynamic 8-bit type, around their mean."""
    offset = _torch_sum(values, threads) / np.float32(len(values))
    centred = values - offset
    padded = np.pad(centred, (0, -len(centred) % OUTER_BLOCK)).reshape(-1, OUTER_BLOCK)
    absmax = np.abs(padded).max(axis=1, keepdims=True)
    inverse = np.divide(1, absmax, out=np.zeros_like(absmax), where=absmax > 2.0**-128)
    scaled = np.clip(padded * inverse, -1, 1)
    # bitsandbytes' CPU kernel looks the code up in a table over [-1, 1]: not always the nearest.
    half = (scaled + np.float32(1)) * np.float32(0.5)
    cell = (half * np.float32(_CELLS - 1) + np.float32(0.5)).astype(np.intp)
    back: Array = dynamic_map()[_dynamic_codes()[cell]] * absmax + offset
    return back.reshape(-1)[: len(values)]


@functools.cache
def dynamic_map() -> Array:
    """The 256 values of the signed dynamic 8-bit type (arXiv 1511.04561, bitsandbytes' variant).

    There are seven exponents. The exponent of 10^(e-6) has 2^e fractions of each sign, the centres of
    2^e equal cells of [0.1, 1]. 0 and 1 are added.
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


_PARALLEL_VALUES = 32768
"""length of a vector from which on torch sums in several threads"""
_LANES = 8
"""float32 in a vector of torch's sum on x86 (with AVX-512 too)"""


def _torch_sum(values: Array, threads: int) -> np.float32:
    """torch.sum of a float32 vector on a CPU, with the same order of additions and rounding.

    Each thread sums an equal share. A share is added up in vectors of 8, the vectors in 4 interleaved
    sums, each of these in a cascade (aten/src/ATen/native: SumKernel.cpp, TensorIteratorReduce.cpp).
    """
    if threads > 1 and len(values) >= _PARALLEL_VALUES:
        share = -(-len(values) // min(threads, -(-len(values) // _PARALLEL_VALUES)))
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
