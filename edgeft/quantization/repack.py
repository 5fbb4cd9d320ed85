"""Tensors whose bytes in a GGUF are given: codes that were chosen before go into ggml's blocks.

    repacked = Repacked(Checkpoint(folder))                 # a folder of GPTQ
    gguf.convert(merged, out, "f16", threads=2, coded=repacked)
    repacked.inexact                                        # what did not arrive to the bit

A block of ggml is 32 weights with a scale in float16. A symmetric layer whose groups are runs of
such blocks keeps every code and every scale: it is Q4_0 where it has 2, 3 or 4 bits, Q8_0 where it
has 8. An asymmetric one of up to 4 bits is Q4_1, whose minimum, -scale * zero, is a float16, too.
What has no such place, as columns in any order's groups, becomes float16.
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

BLOCK = 32
"""weights"""


class Coded(Protocol):
    """Where a converter gets the bytes of some of the checkpoint's tensors."""

    def kind(self, source: str) -> GGMLQuantizationType | None:
        """The type that holds this tensor; None where its bytes are not given."""

    def rows(self, source: str, rows: Rows) -> Bytes:
        """(rows, bytes of a row), in the order of the checkpoint's tensor; several threads ask."""


class Repacked:
    """The layers of a GPTQ checkpoint, code by code."""

    def __init__(self, weights: Checkpoint) -> None:
        self._weights = weights
        self.inexact: set[str] = set()
        """tensors whose bytes, as far as they were asked for, do not mean the very same values"""
        self.kind = functools.cache(self._kind)

    def bits(self, source: str) -> float | None:
        """Per weight in the file; None where the bytes are not given."""
        from gguf import GGML_QUANT_SIZES

        kind = self.kind(source)
        if kind is None:
            return None
        weights, size = GGML_QUANT_SIZES[kind]
        return float(8 * size / weights)

    def rows(self, source: str, rows: Rows) -> Bytes:
        """ValueError where a value is no finite number of its type."""
        kind, codes = self.kind(source), self._weights.codes(source, rows)
        if kind is None or codes is None:
            raise ValueError(f"{source} has no codes")
        with np.errstate(over="ignore"):
            halves, exact = _HALVES[kind.name](codes)
        if not all(np.isfinite(half).all() for half in halves):
            raise ValueError("not every value is finite in float16")
        if not exact:
            self.inexact.add(source)
        if kind.name == "F16":
            return _bytes(halves[0])
        fields = _eights(codes) if kind.name == "Q8_0" else _fours(codes, kind.name == "Q4_0")
        blocks = [_bytes(half[..., None]) for half in halves]
        return np.concatenate([*blocks, fields], axis=2).reshape(len(fields), -1)

    def _kind(self, source: str) -> GGMLQuantizationType | None:
        from gguf import GGMLQuantizationType as Kind

        layer = self._weights.layer(source)
        if layer is None:
            return None
        _, columns, bits = gptq_layout.check_shapes(
            {name: array.shape for name, array in layer.items()}
        )
        scales, groups = layer["scales"], np.asarray(layer["g_idx"])
        if columns % BLOCK or (groups.reshape(-1, BLOCK) != groups[::BLOCK, None]).any():
            return Kind.F16
        if scales.dtype != np.float16 and (scales != scales.astype(np.float16)).any():
            return Kind.F16
        if (gptq_layout.zeros(layer, offset=self._weights.offset) == 2 ** (bits - 1)).all():
            return Kind.Q8_0 if bits == 8 else Kind.Q4_0
        return Kind.F16 if bits == 8 else Kind.Q4_1


Halves = tuple[list[npt.NDArray[np.float16]], bool]
"""numbers in float16, and whether they are the very numbers"""


def _values(codes: Codes) -> Halves:
    values = codes.values()
    halves = values.astype(np.float16)
    return [halves], np.array_equal(values, halves)


def _scales(codes: Codes) -> Halves:
    """(rows, blocks): of each block its group's scale."""
    return [codes.scales.astype(np.float16)[:, codes.groups[::BLOCK]]], True


def _scales_and_minima(codes: Codes) -> Halves:
    (scales,), _ = _scales(codes)
    minima = -scales.astype(np.float32) * codes.zeros[:, codes.groups[::BLOCK]]
    halves = minima.astype(np.float16)
    return [scales, halves], np.array_equal(minima, halves)


_HALVES = {"F16": _values, "Q4_0": _scales, "Q8_0": _scales, "Q4_1": _scales_and_minima}


def _fours(codes: Codes, centred: bool) -> Bytes:
    """(rows, blocks, 16): a block's first 16 codes in the lower halves of its bytes. Q4_0 has its
    zero at 8."""
    shift = np.uint8(8 - 2 ** (codes.bits - 1) if centred else 0)
    fields = (codes.codes + shift).reshape(len(codes.codes), -1, 2, BLOCK // 2)
    return fields[:, :, 0] | fields[:, :, 1] << np.uint8(4)


def _eights(codes: Codes) -> Bytes:
    """(rows, blocks, 32): signed bytes around 0."""
    return (codes.codes ^ np.uint8(128)).reshape(len(codes.codes), -1, BLOCK)


def _bytes(values: npt.NDArray[Any]) -> Bytes:
    return np.ascontiguousarray(values).view(np.uint8)
