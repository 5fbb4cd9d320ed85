"""Layers of a GPTQ checkpoint -> the bytes of ggml's blocks, with the same codes.

    source = RepackedGPTQ(Checkpoint(folder))               # a GPTQ folder
    source.rows("model.layers.0.mlp.up_proj.weight", slice(0, 64))
    source.inexact                                          # tensors whose values were rounded

A block of ggml is 32 weights with a scale in float16. A symmetric layer whose groups consist of such
blocks keeps every code and every scale: with 2, 3 or 4 bits it becomes Q4_0, with 8 bits Q8_0. An
asymmetric layer of up to 4 bits becomes Q4_1, whose minimum, -scale * zero, is a float16 as well.
Any other layer, such as one whose groups are in activation order, becomes float16.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from edgeft.weights import gptq_layout
from edgeft.weights.checkpoint import Checkpoint, Rows
from edgeft.weights.gptq_layout import Codes

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

Bytes = npt.NDArray[np.uint8]

BLOCK_COLUMNS = 32
"""weights of a ggml block"""


class BlockSource(Protocol):
    """Quantized bytes of some of the checkpoint's tensors, for a converter."""

    def block_type(self, source: str) -> GGMLQuantizationType | None:
        """The type of a tensor's bytes; None for a tensor that the source does not have."""

    def rows(self, source: str, rows: Rows) -> Bytes:
        """(rows, bytes per row), in the order of the checkpoint's tensor; called by several threads."""


class RepackedGPTQ:
    """The `BlockSource` of a GPTQ checkpoint."""

    def __init__(self, weights: Checkpoint) -> None:
        self._weights = weights
        self.inexact: set[str] = set()
        """tensors of which rows that were read changed their values"""
        self.block_type = functools.cache(self._qtype)

    def bits(self, source: str) -> float | None:
        """Bits per weight in the file; None for a tensor that GPTQ did not quantize."""
        from gguf import GGML_QUANT_SIZES

        qtype = self.block_type(source)
        if qtype is None:
            return None
        weights, size = GGML_QUANT_SIZES[qtype]
        return float(8 * size / weights)

    def rows(self, source: str, rows: Rows) -> Bytes:
        """ValueError where a value is not finite in its type."""
        qtype, codes = self.block_type(source), self._weights.codes(source, rows)
        if qtype is None or codes is None:
            raise ValueError(f"{source} has no codes")
        with np.errstate(over="ignore"):
            halves, exact = _HALVES[qtype.name](codes)
        if not all(np.isfinite(half).all() for half in halves):
            raise ValueError("not every value is finite in float16")
        if not exact:
            self.inexact.add(source)
        if qtype.name == "F16":
            return _bytes(halves[0])
        fields = _eights(codes) if qtype.name == "Q8_0" else _fours(codes, qtype.name == "Q4_0")
        blocks = [_bytes(half[..., None]) for half in halves]
        return np.concatenate([*blocks, fields], axis=2).reshape(len(fields), -1)

    def _qtype(self, source: str) -> GGMLQuantizationType | None:
        from gguf import GGMLQuantizationType as Type

        layer = self._weights.layer(source)
        if layer is None:
            return None
        _, columns, bits = gptq_layout.check_shapes(
            {name: array.shape for name, array in layer.items()}
        )
        scales, groups = layer["scales"], np.asarray(layer["g_idx"])
        if (
            columns % BLOCK_COLUMNS
            or (groups.reshape(-1, BLOCK_COLUMNS) != groups[::BLOCK_COLUMNS, None]).any()
        ):
            return Type.F16
        if scales.dtype != np.float16 and (scales != scales.astype(np.float16)).any():
            return Type.F16
        if (gptq_layout.zeros(layer, offset=self._weights.offset) == 2 ** (bits - 1)).all():
            return Type.Q8_0 if bits == 8 else Type.Q4_0
        return Type.F16 if bits == 8 else Type.Q4_1


Halves = tuple[list[npt.NDArray[np.float16]], bool]
"""numbers in float16, and whether none of them was rounded"""


def _values(codes: Codes) -> Halves:
    values = codes.values()
    halves = values.astype(np.float16)
    return [halves], np.array_equal(values, halves)


def _scales(codes: Codes) -> Halves:
    """(rows, blocks): the scale of each block's group."""
    return [codes.scales.astype(np.float16)[:, codes.groups[::BLOCK_COLUMNS]]], True


def _scales_and_minima(codes: Codes) -> Halves:
    (scales,), _ = _scales(codes)
    minima = -scales.astype(np.float32) * codes.zeros[:, codes.groups[::BLOCK_COLUMNS]]
    halves = minima.astype(np.float16)
    return [scales, halves], np.array_equal(minima, halves)


_HALVES = {"F16": _values, "Q4_0": _scales, "Q8_0": _scales, "Q4_1": _scales_and_minima}


def _fours(codes: Codes, centred: bool) -> Bytes:
    """(rows, blocks, 16): a block's first 16 codes are the lower halves of its bytes.

    `centred`: move the zero to 8, where Q4_0 has it.
    """
    shift = np.uint8(8 - 2 ** (codes.bits - 1) if centred else 0)
    fields = (codes.codes + shift).reshape(len(codes.codes), -1, 2, BLOCK_COLUMNS // 2)
    return fields[:, :, 0] | fields[:, :, 1] << np.uint8(4)


def _eights(codes: Codes) -> Bytes:
    """(rows, blocks, 32): codes as signed bytes around 0."""
    return (codes.codes ^ np.uint8(128)).reshape(len(codes.codes), -1, BLOCK_COLUMNS)


def _bytes(values: npt.NDArray[Any]) -> Bytes:
    return np.ascontiguousarray(values).view(np.uint8)
