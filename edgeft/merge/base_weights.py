"""Checkpoint -> the dequantized 4- or 8-bit values that a QLoRA adapter was trained on.

    base = QuantizedBase(Checkpoint(folder), card, "nf4")
    base.rows("model.layers.0.mlp.up_proj.weight", slice(0, 64))     # float32, dequantized from NF4

Weights that the family's card names as 4-bit weights are quantized and dequantized
(`edgeft.quantization.nf4`, `edgeft.quantization.int8`); the others keep their values. Training in bfloat16 rounds all weights to
bfloat16 on loading, and the 4-bit weights again after dequantization. The same happens here.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np

from edgeft import models
from edgeft.quantization import int8, nf4
from edgeft.weights.checkpoint import Array, Checkpoint, Rows, stored_as

Precision = Literal["nf4", "fp4", "int8"]
BasePrecision = Literal["stored", "nf4", "fp4", "int8", "file"]
"""Values that a delta is added to: the checkpoint's own, its 4- or 8-bit values, dequantized, or those of
the GGUF file that a training began with (`edgeft.merge.trained_file`)."""


class BaseWeights(Protocol):
    """Rows of the base's tensors; a `Checkpoint` is one."""

    def rows(self, name: str, rows: Rows) -> Array:
        """(rows, columns), or elements of a vector, in float32."""


class QuantizedBase:
    """Dequantized rows; keeps one quantized tensor at a time. Safe for threads."""

    def __init__(
        self,
        weights: Checkpoint,
        card: models.Card,
        precision: Precision,
        double_quant: bool = True,
        training: dict[str, Any] | None = None,
    ) -> None:
        """`training`: facts.nf4 of the adapter's manifest: its precision (`kind`), double quantization,
        compute type and threads. They count only where the precision is `precision`.
        """
        training = training if training and training.get("kind") == precision else {}
        self._weights, self._card = weights, card
        self._precision = precision
        self._double_quant: bool = training.get("double_quant", double_quant)
        self._bfloat16 = training.get("compute_type") == "bfloat16"
        self._threads: int = training.get("threads", 1)
        self._lock = threading.Lock()
        self._cached: tuple[str, nf4.Quantized] | None = None

    def rows(self, name: str, rows: Rows) -> Array:
        shape = self._weights.tensors[name].shape
        if not self._card.in_4bit(name, shape):
            return self._loaded(name, rows)
        if self._precision == "int8":  # a scale for each row
            values = int8.round_trip(self._loaded(name, rows))
            return stored_as(values, "BF16") if self._bfloat16 else values
        with self._lock:
            if self._cached is None or self._cached[0] != name:
                self._cached = name, self._quantized(name, (shape[0], shape[1]))
            quantized = self._cached[1]
        values = _dequantized_rows(quantized, rows)
        return stored_as(values, "BF16") if self._bfloat16 else values

    def _quantized(self, name: str, shape: tuple[int, int]) -> nf4.Quantized:
        read = partial(self._loaded_range, name)
        assert self._precision != "int8"
        return nf4.quantized(
            read, shape, self._precision, self._double_quant, threads=self._threads
        )

    def _loaded(self, name: str, rows: Rows) -> Array:
        values = self._weights.rows(name, rows)
        rounded = self._bfloat16 and not self._card.in_float32(name)
        return stored_as(values, "BF16") if rounded else values

    def _loaded_range(self, name: str, start: int, stop: int) -> Array:
        return self._loaded(name, slice(start, stop))


def _dequantized_rows(quantized: nf4.Quantized, rows: Rows) -> Array:
    if isinstance(rows, slice):
        start, stop, _ = rows.indices(quantized.shape[0])
        return quantized.rows(start, stop)
    first, last = int(rows.min()), int(rows.max())
    if last - first < 2 * len(rows):  # one range is cheaper than many single rows
        return quantized.rows(first, last + 1)[rows - first]
    return np.concatenate([quantized.rows(row, row + 1) for row in rows.tolist()])
