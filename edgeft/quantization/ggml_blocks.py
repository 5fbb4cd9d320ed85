"""The values that the scales of ggml's blocks allow, and the codes in their bytes.

    data = quantize(weight, GGMLQuantizationType.Q4_K, threads=1)      # edgeft.quantization.ggml
    grid = grid_of(data, GGMLQuantizationType.Q4_K)                    # data's scales
    codes = codes_of(data, GGMLQuantizationType.Q4_K)
    values(grid, codes)                           # to the bit what gguf.dequantize gives for data
    data = with_codes(data, codes ^ 1, GGMLQuantizationType.Q4_K)      # the same scales

For the types whose values lie evenly spaced: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and the K-quants. Where
the scales and the bits of the codes lie is ggml's to say: the structs block_q* in
ggml/src/ggml-common.h and dequantize_row_q*, get_scale_min_k4 in ggml/src/ggml-quants.c.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

Array = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Grid:
    """The values that blocks' scales allow: low + step * code, for a code in 0..levels-1.

    As real numbers step * code is exact in float32, so each value is rounded at most once, in the
    sum; in a type with a `zero` not even there.
    """

    step: Array
    """(rows, columns // run); may be 0 or negative"""
    low: Array
    """(rows, columns // run)"""
    levels: int
    run: int
    """neighbouring columns that share step and low: 16 or 32"""
    zero: int | None
    """the code that means 0, low = -zero * step; None where each run has a low of its own"""


@dataclass(frozen=True)
class _Plane:
    """Some bits of every code: `fields` bit fields in each byte, which belong to codes `width` apart.

    Byte b of the plane's group g holds, from its low bits up, those of the codes
    g * fields * width + b, + width, + 2 * width, …
    """

    start: int
    groups: int
    fields: int
    width: int
    bits: int
    above: int = 0
    """bits of the code that lie in other planes and are lower"""

    def bytes_of(self, blocks: Bytes) -> Bytes:
        """A view, (rows, blocks, groups, width)."""
        stop = self.start + self.groups * self.width
        return blocks[..., self.start : stop].reshape(*blocks.shape[:2], self.groups, self.width)

    def of(self, codes: Bytes) -> Bytes:
        """A view, (rows, blocks, groups, fields, width)."""
        return codes.reshape(*codes.shape[:2], self.groups, self.fields, self.width)


@dataclass(frozen=True)
class _Layout:
    """A type's blocks."""

    columns: int
    size: int
    """bytes"""
    levels: int
    run: int
    zero: int | None
    planes: tuple[_Plane, ...]
    scales: Callable[[Bytes], tuple[Array, Array | None]]
    """blocks (rows, blocks, bytes) -> step and low, (rows, blocks, runs); no low with a zero"""
    flip: int = 0
    """what is XORed to a code before it is stored"""

    def blocks(self, data: Bytes) -> Bytes:
        if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] % self.size:
            raise ValueError(
                f"data {data.dtype} {data.shape} is not uint8, (rows, a multiple of {self.size})"
            )
        return data.reshape(len(data), data.shape[1] // self.size, self.size)


def supports(qtype: GGMLQuantizationType) -> bool:
    return qtype.name in _LAYOUTS


def grid_of(data: Bytes, qtype: GGMLQuantizationType) -> Grid:
    """The grid of `data` (rows, bytes per row)."""
    layout = _layout(qtype)
    step, low = layout.scales(layout.blocks(data))
    if low is None:
        assert layout.zero is not None
        low = step * np.float32(-layout.zero)
    shape = (len(data), data.shape[1] // layout.size * (layout.columns // layout.run))
    return Grid(step.reshape(shape), low.reshape(shape), layout.levels, layout.run, layout.zero)


def values(grid: Grid, codes: Bytes) -> Array:
    """What `codes` (rows, columns) mean: to the bit, and to the sign of a zero, gguf.dequantize's.

    And dequantize_row_q*'s in ggml, whatever the compiler makes of its order: only the last sum
    rounds.
    """
    rows, runs = grid.step.shape
    _check(codes, (rows, runs * grid.run), grid.levels)
    result = codes.reshape(rows, runs, grid.run).astype(np.float32)
    if grid.zero is not None:
        result -= np.float32(grid.zero)
        result *= grid.step[..., None]
    else:
        result *= grid.step[..., None]
        result += grid.low[..., None]
    return result.reshape(codes.shape)


def codes_of(data: Bytes, qtype: GGMLQuantizationType) -> Bytes:
    """The codes in `data` (rows, bytes per row): (rows, columns)."""
    layout = _layout(qtype)
    blocks = layout.blocks(data)
    codes = np.empty((*blocks.shape[:2], layout.columns), np.uint8)
    for plane in layout.planes:
        _unpack(plane, blocks, codes)
    if layout.flip:
        codes ^= np.uint8(layout.flip)
    return codes.reshape(len(data), blocks.shape[1] * layout.columns)


def with_codes(data: Bytes, codes: Bytes, qtype: GGMLQuantizationType) -> Bytes:
    """A copy of `data` (rows, bytes per row) with its scales and other codes, (rows, columns)."""
    layout = _layout(qtype)
    result = np.array(data, order="C")
    blocks = layout.blocks(result)
    _check(codes, (len(data), blocks.shape[1] * layout.columns), layout.levels)
    codes = codes.reshape(*blocks.shape[:2], layout.columns)
    if layout.flip:
        codes = codes ^ np.uint8(layout.flip)
    for plane in layout.planes:
        _pack(plane, codes, blocks)
    return result


def _layout(qtype: GGMLQuantizationType) -> _Layout:
    if not supports(qtype):
        raise ValueError(f"the values of {qtype.name} are not evenly spaced")
    return _LAYOUTS[qtype.name]


def _check(codes: Bytes, shape: tuple[int, int], levels: int) -> None:
    if codes.dtype != np.uint8 or codes.shape != shape:
        raise ValueError(f"codes {codes.dtype} {codes.shape} are not uint8, {shape}")
    if codes.size and codes.max() >= levels:
        raise ValueError(f"code {codes.max()} is not below {levels}")


def _unpack(plane: _Plane, blocks: Bytes, codes: Bytes) -> None:
    """The plane's bits into `codes` (rows, blocks, columns); the lowest plane comes first."""
    packed = plane.bytes_of(blocks)
    target = plane.of(codes)
    mask = np.uint8((1 << plane.bits) - 1)
    for field in range(plane.fields):
        part = (packed >> np.uint8(field * plane.bits)) & mask
        if plane.above:
            target[..., field, :] |= part << np.uint8(plane.above)
        else:
            target[..., field, :] = part


def _pack(plane: _Plane, codes: Bytes, blocks: Bytes) -> None:
    source = plane.of(codes)
    mask = np.uint8((1 << plane.bits) - 1)
    packed = np.zeros((*codes.shape[:2], plane.groups, plane.width), np.uint8)
    for field in range(plane.fields):
        part = (source[..., field, :] >> np.uint8(plane.above)) & mask
        packed |= part << np.uint8(field * plane.bits)
    plane.bytes_of(blocks)[...] = packed


def _half(blocks: Bytes, start: int) -> Array:
    """The float16 at a place of each block, (rows, blocks, 1)."""
    return np.ascontiguousarray(blocks[..., start : start + 2]).view("<f2").astype(np.float32)


def _step(blocks: Bytes) -> tuple[Array, None]:
    return _half(blocks, 0), None


def _step_and_low(blocks: Bytes) -> tuple[Array, Array]:
    return _half(blocks, 0), _half(blocks, 2)


def _scales_q2_k(blocks: Bytes) -> tuple[Array, Array]:
    scales = blocks[..., :16]
    return _half(blocks, 80) * (scales & 15), -_half(blocks, 82) * (scales >> 4)


def _scales_q3_k(blocks: Bytes) -> tuple[Array, None]:
    scales = np.empty((*blocks.shape[:2], 16), np.uint8)
    for plane in (_Plane(96, 1, 2, 8, 4), _Plane(104, 1, 4, 4, 2, above=4)):
        _unpack(plane, blocks, scales)
    return _half(blocks, 108) * (scales.astype(np.float32) - np.float32(32)), None


def _scales_q4_k(blocks: Bytes) -> tuple[Array, Array]:
    """Also Q5_K's. Six bits for each: whole for the first four runs, for the others in two parts."""
    scales, lows, rest = blocks[..., 4:8], blocks[..., 8:12], blocks[..., 12:16]
    more_scales = rest & 15 | scales >> 6 << 4
    more_lows = rest >> 4 | lows >> 6 << 4
    return (
        _half(blocks, 0) * np.concatenate([scales & 63, more_scales], -1),
        -_half(blocks, 2) * np.concatenate([lows & 63, more_lows], -1),
    )


def _scales_q6_k(blocks: Bytes) -> tuple[Array, None]:
    return _half(blocks, 208) * blocks[..., 192:208].view(np.int8), None


_LAYOUTS = {
    "Q4_0": _Layout(32, 18, 16, 32, 8, (_Plane(2, 1, 2, 16, 4),), _step),
    "Q4_1": _Layout(32, 20, 16, 32, None, (_Plane(4, 1, 2, 16, 4),), _step_and_low),
    "Q5_0": _Layout(
        32, 22, 32, 32, 16, (_Plane(6, 1, 2, 16, 4), _Plane(2, 4, 8, 1, 1, above=4)), _step
    ),
    "Q5_1": _Layout(
        32, 24, 32, 32, None,
        (_Plane(8, 1, 2, 16, 4), _Plane(4, 4, 8, 1, 1, above=4)), _step_and_low,
    ),
    "Q8_0": _Layout(32, 34, 256, 32, 128, (_Plane(2, 1, 1, 32, 8),), _step, flip=128),
    "Q2_K": _Layout(256, 84, 4, 16, None, (_Plane(16, 2, 4, 32, 2),), _scales_q2_k),
    "Q3_K": _Layout(
        256, 110, 8, 16, 4, (_Plane(32, 2, 4, 32, 2), _Plane(0, 1, 8, 32, 1, above=2)),
        _scales_q3_k,
    ),
    "Q4_K": _Layout(256, 144, 16, 32, None, (_Plane(16, 4, 2, 32, 4),), _scales_q4_k),
    "Q5_K": _Layout(
        256, 176, 32, 32, None,
        (_Plane(48, 4, 2, 32, 4), _Plane(16, 1, 8, 32, 1, above=4)), _scales_q4_k,
    ),
    "Q6_K": _Layout(
        256, 210, 64, 16, 32, (_Plane(0, 2, 2, 64, 4), _Plane(128, 2, 4, 32, 2, above=4)),
        _scales_q6_k,
    ),
}  # fmt: skip
