"""Bytes of ggml's blocks -> their scales, and for other weights the nearest values that the scales allow.

    scales = scales_of(data, GGMLQuantizationType.Q4_K)
    scales.nearest(weight)              # float32; without ggml's search for better scales

It takes a tenth of the time of the quantizers of K-quants and IQ4. Other IQ types have no scales of their own
for each value, but tables of whole groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from edgeft.quantization.ggml_blocks import Array, BlockGrid, Bytes, grid_of, supports

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

RUN = 32
"""columns of IQ4 that share a scale"""
IQ4_TABLE = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)
"""kvalues_iq4nl of ggml/src/ggml-common.h"""


class Scales(Protocol):
    """The scales of some rows."""

    def nearest(self, weights: Array) -> Array:
        """The allowed values nearest to `weights`, (rows, columns)."""
        ...


@dataclass(frozen=True)
class EvenScales:
    """Of evenly spaced values."""

    grid: BlockGrid

    def nearest(self, weights: Array) -> Array:
        """Where a step is 0, the run's low."""
        grid, result = self.grid, self._places(weights)
        result *= grid.step[..., None]
        if grid.zero is None:
            result += grid.low[..., None]
        return result.reshape(weights.shape)

    def codes(self, weights: Array) -> Bytes:
        """The codes of `nearest`, (rows, columns)."""
        places = self._places(weights)
        places += np.float32(self.grid.zero or 0)
        return places.astype(np.uint8).reshape(weights.shape)

    def _places(self, weights: Array) -> Array:
        """The codes, of a type with a zero counted from it: whole numbers (rows, runs, run)."""
        grid, zero = self.grid, self.grid.zero or 0
        rows, runs = grid.step.shape
        step = grid.step[..., None]
        result = weights.reshape(rows, runs, grid.run).copy()
        if grid.zero is None:
            result -= grid.low[..., None]
        result /= np.where(step == 0, np.float32(1), step)  # a mask of the division would be slow
        np.rint(result, out=result)
        return np.clip(result, -zero, grid.levels - 1 - zero, out=result)


@dataclass(frozen=True)
class TableScales:
    """Of IQ4: a scale times one of the 16 values of IQ4_TABLE."""

    step: Array
    """(rows, columns // RUN)"""

    def nearest(self, weights: Array) -> Array:
        """Nearest to the weight over its scale, rounded to a whole number as the table's are."""
        step = self.step[..., None]
        places = weights.reshape(*self.step.shape, RUN).copy()
        places /= np.where(step == 0, np.float32(1), step)
        np.clip(np.rint(places, out=places), -128, 127, out=places)
        result: Array = _NEAREST[places.astype(np.int8).view(np.uint8)] * step
        return result.reshape(weights.shape)


def has_scales(qtype: GGMLQuantizationType) -> bool:
    return supports(qtype) or qtype.name in ("IQ4_NL", "IQ4_XS")


def scales_of(data: Bytes, qtype: GGMLQuantizationType) -> Scales:
    """The scales of `data` (rows, bytes per row)."""
    match qtype.name:
        case "IQ4_NL":
            blocks = data.reshape(len(data), -1, 18)
            return TableScales(_half(blocks)[..., 0])
        case "IQ4_XS":
            return TableScales(_scales_iq4_xs(data.reshape(len(data), -1, 136)))
        case _:
            return EvenScales(grid_of(data, qtype))


def _scales_iq4_xs(blocks: Bytes) -> Array:
    """block_iq4_xs of ggml-common.h: float16 d, two high bits of eight scales, their four low bits."""
    high = np.ascontiguousarray(blocks[..., 2:4]).view("<u2")
    runs = np.arange(8)
    low = np.repeat(blocks[..., 4:8], 2, axis=-1) >> (4 * (runs % 2)).astype(np.uint8) & 15
    scales = low.astype(np.float32) + 16 * (high >> (2 * runs).astype(np.uint16) & 3) - 32
    result: Array = (_half(blocks) * scales).astype(np.float32)
    return result.reshape(len(blocks), -1)


def _half(blocks: Bytes) -> Array:
    """The float16 at the start of each block, (rows, blocks, 1)."""
    return np.ascontiguousarray(blocks[..., :2]).view("<f2").astype(np.float32)


def _nearest_of_table() -> Array:
    """Byte of a whole number from -128 to 127 -> the nearest value of IQ4_TABLE."""
    numbers = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.float32)
    table: Array = IQ4_TABLE[np.abs(numbers[:, None] - IQ4_TABLE).argmin(1)]
    return table


_NEAREST = _nearest_of_table()
