"""Bytes of ggml's blocks -> the grid that their scales allow and the codes, and back.

    data = quantize(weight, GGMLQuantizationType.Q4_K, threads=1)      # edgeft.quantization.ggml
    grid = grid_of(data, GGMLQuantizationType.Q4_K)                    # data's scales
    codes = codes_of(data, GGMLQuantizationType.Q4_K)
    values(grid, codes)                           # to the bit what gguf.dequantize gives for data
    data = with_codes(data, codes ^ 1, GGMLQuantizationType.Q4_K)      # the same scales

The types are those with evenly spaced values: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and the K-quants. The
places of scales and codes are those of ggml: the structs block_q* in ggml/src/ggml-common.h, and
dequantize_row_q* and get_scale_min_k4 in ggml/src/ggml-quants.c.
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
class BlockGrid:
    """The values that the scales of blocks allow: low + step * code, for a code in 0..levels-1.

    step * code is exact in float32. So each value is rounded at most once, in the sum, and in a type
    with a `zero` never.
    """

    step: Array
    """(rows, columns // run); may be 0 or negative"""
    low: Array
    """(rows, columns // run)"""
    levels: int
    run: int
    """neighbouring columns that share step and low: 16 or 32"""
    zero: int | None
    """the code of the value 0, low = -zero * step; None where each run stores its own low"""


@dataclass(frozen=True)
class _BitField:
    """Where a block stores some bits of every code: `per_byte` codes in each byte.

    Byte b of group g holds, from its low bits up, bits of the codes
    g * per_byte * width + b, + width, + 2 * width, …
    """

    start: int
    """byte of the block"""
    groups: int
    per_byte: int
    width: int
    """bytes of a group"""
    bits: int
    """of each code"""
    above: int = 0
    """lower bits of the code, which other fields store"""

    def bytes_of(self, blocks: Bytes) -> Bytes:
        """A view, (rows, blocks, groups, width)."""
        stop = self.start + self.groups * self.width
        return blocks[..., self.start : stop].reshape(*blocks.shape[:2], self.groups, self.width)

    def of(self, codes: Bytes) -> Bytes:
        """A view, (rows, blocks, groups, per_byte, width)."""
        return codes.reshape(*codes.shape[:2], self.groups, self.per_byte, self.width)


@dataclass(frozen=True)
class _Layout:
    """How a type stores a block."""

    columns: int
    size: int
    """bytes"""
    levels: int
    run: int
    zero: int | None
    fields: tuple[_BitField, ...]
    """of the codes; the one with the lowest bits comes first"""
    scales: Callable[[Bytes], tuple[Array, Array | None]]
    """blocks (rows, blocks, bytes) -> step and low, (rows, blocks, runs); no low with a zero"""
    flip: int = 0
    """is XORed to a code before it is stored"""

    def blocks(self, data: Bytes) -> Bytes:
        if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] % self.size:
            raise ValueError(
                f"data {data.dtype} {data.shape} is not uint8, (rows, a multiple of {self.size})"
            )
        return data.reshape(len(data), data.shape[1] // self.size, self.size)


def supports(qtype: GGMLQuantizationType) -> bool:
    """Whether a type's values are evenly spaced."""
    return qtype.name in _LAYOUTS


def grid_of(data: Bytes, qtype: GGMLQuantizationType) -> BlockGrid:
    """The grid of `data` (rows, bytes per row)."""
    layout = _layout(qtype)
    step, low = layout.scales(layout.blocks(data))
    if low is None:
        assert layout.zero is not None
        low = step * np.float32(-layout.zero)
    shape = (len(data), data.shape[1] // layout.size * (layout.columns // layout.run))
    return BlockGrid(
        step.reshape(shape), low.reshape(shape), layout.levels, layout.run, layout.zero
    )


def values(grid: BlockGrid, codes: Bytes) -> Array:
    """The values of `codes` (rows, columns): those of gguf.dequantize to the bit and a zero's sign.

    They are also those of ggml's dequantize_row_q*, in any order of its operations: only the last sum
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
    for field in layout.fields:
        _unpack(field, blocks, codes)
    if layout.flip:
        codes ^= np.uint8(layout.flip)
    return codes.reshape(len(data), blocks.shape[1] * layout.columns)


def with_codes(data: Bytes, codes: Bytes, qtype: GGMLQuantizationType) -> Bytes:
    """A copy of `data` (rows, bytes per row) with the same scales and these codes, (rows, columns)."""
    layout = _layout(qtype)
    result = np.array(data, order="C")
    blocks = layout.blocks(result)
    _check(codes, (len(data), blocks.shape[1] * layout.columns), layout.levels)
    codes = codes.reshape(*blocks.shape[:2], layout.columns)
    if layout.flip:
        codes = codes ^ np.uint8(layout.flip)
    for field in layout.fields:
        _pack(field, codes, blocks)
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


def _unpack(field: _BitField, blocks: Bytes, codes: Bytes) -> None:
    """Write the field's bits into `codes` (rows, blocks, columns); the lowest bits come first."""
    packed = field.bytes_of(blocks)
    target = field.of(codes)
    mask = np.uint8((1 << field.bits) - 1)
    for place in range(field.per_byte):
        part = (packed >> np.uint8(place * field.bits)) & mask
        if field.above:
            target[..., place, :] |= part << np.uint8(field.above)
        else:
            target[..., place, :] = part


def _pack(field: _BitField, codes: Bytes, blocks: Bytes) -> None:
    """Write the field's bits of `codes` (rows, blocks, columns) into `blocks`."""
    source = field.of(codes)
    mask = np.uint8((1 << field.bits) - 1)
    packed = np.zeros((*codes.shape[:2], field.groups, field.width), np.uint8)
    for place in range(field.per_byte):
        part = (source[..., place, :] >> np.uint8(field.above)) & mask
        packed |= part << np.uint8(place * field.bits)
    field.bytes_of(blocks)[...] = packed


def _half(blocks: Bytes, start: int) -> Array:
    """The float16 at a byte of each block, (rows, blocks, 1)."""
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
    for field in (_BitField(96, 1, 2, 8, 4), _BitField(104, 1, 4, 4, 2, above=4)):
        _unpack(field, blocks, scales)
    return _half(blocks, 108) * (scales.astype(np.float32) - np.float32(32)), None


def _scales_q4_k(blocks: Bytes) -> tuple[Array, Array]:
    """Of Q4_K and Q5_K: six bits each, whole for the first four runs, in two parts for the others."""
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
    "Q4_0": _Layout(32, 18, 16, 32, 8, (_BitField(2, 1, 2, 16, 4),), _step),
    "Q4_1": _Layout(32, 20, 16, 32, None, (_BitField(4, 1, 2, 16, 4),), _step_and_low),
    "Q5_0": _Layout(
        32, 22, 32, 32, 16, (_BitField(6, 1, 2, 16, 4), _BitField(2, 4, 8, 1, 1, above=4)), _step
    ),
    "Q5_1": _Layout(
        32, 24, 32, 32, None,
        (_BitField(8, 1, 2, 16, 4), _BitField(4, 4, 8, 1, 1, above=4)), _step_and_low,
    ),
    "Q8_0": _Layout(32, 34, 256, 32, 128, (_BitField(2, 1, 1, 32, 8),), _step, flip=128),
    "Q2_K": _Layout(256, 84, 4, 16, None, (_BitField(16, 2, 4, 32, 2),), _scales_q2_k),
    "Q3_K": _Layout(
        256, 110, 8, 16, 4, (_BitField(32, 2, 4, 32, 2), _BitField(0, 1, 8, 32, 1, above=2)),
        _scales_q3_k,
    ),
    "Q4_K": _Layout(256, 144, 16, 32, None, (_BitField(16, 4, 2, 32, 4),), _scales_q4_k),
    "Q5_K": _Layout(
        256, 176, 32, 32, None,
        (_BitField(48, 4, 2, 32, 4), _BitField(16, 1, 8, 32, 1, above=4)), _scales_q4_k,
    ),
    "Q6_K": _Layout(
        256, 210, 64, 16, 32, (_BitField(0, 2, 2, 64, 4), _BitField(128, 2, 4, 32, 2, above=4)),
        _scales_q6_k,
    ),
}  # fmt: skip
