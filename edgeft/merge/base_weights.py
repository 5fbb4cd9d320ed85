"""The weights that an adapter's change is added to: as they are stored, or as QLoRA saw them.

    base = BaseWeights(Checkpoint(folder), card, "nf4")
    base.rows("model.layers.0.mlp.up_proj.weight", slice(0, 64))     # float32

"w16" are the stored weights, "nf4" and "fp4" the values after 4 bits and back where the card says
that they were in 4 bits (`edgeft.quantization.nf4`). Of a model that was trained in bfloat16 all weights were
rounded to it: on loading, and those in 4 bits again on the way back.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import Any, Literal

import numpy as np

from edgeft import models
from edgeft.quantization import nf4
from edgeft.weights.checkpoint import Array, Checkpoint, Rows, stored_as

MergeBase = Literal["w16", "nf4", "fp4"]


class BaseWeights:
    """Rows of the base's tensors; one quantized tensor at a time is kept."""

    def __init__(
        self,
        weights: Checkpoint,
        card: models.Card,
        kind: MergeBase,
        double_quant: bool = True,
        recorded: dict[str, Any] | None = None,
    ) -> None:
        """`recorded` is facts.nf4 of the adapter's manifest; other kinds than its own ignore it."""
        recorded = recorded if recorded and recorded.get("kind") == kind else {}
        self.kind = kind
        self._weights, self._card, self._double_quant = weights, card, double_quant
        self._half = recorded.get("compute_type") == "bfloat16"
        self._threads: int = recorded.get("threads", 1)
        self._lock = threading.Lock()
        self._seen: tuple[str, nf4.Quantized] | None = None

    def rows(self, name: str, rows: Rows) -> Array:
        shape = self._weights.tensors[name].shape
        if self.kind == "w16" or not self._card.in_4bit(name, shape):
            return self._loaded(name, rows)
        with self._lock:
            if self._seen is None or self._seen[0] != name:
                height, width = shape
                read = partial(self._between, name)
                self._seen = (
                    name,
                    nf4.quantized(
                        read, (height, width), self.kind, self._double_quant, threads=self._threads
                    ),
                )
            seen = self._seen[1]
        values = _some(seen, rows)
        return stored_as(values, "BF16") if self._half else values

    def _loaded(self, name: str, rows: Rows) -> Array:
        values = self._weights.rows(name, rows)
        rounded = self._half and not self._card.in_float32(name)
        return stored_as(values, "BF16") if rounded else values

    def _between(self, name: str, start: int, stop: int) -> Array:
        return self._loaded(name, slice(start, stop))


def _some(seen: nf4.Quantized, rows: Rows) -> Array:
    if isinstance(rows, slice):
        start, stop, _ = rows.indices(seen.shape[0])
        return seen.rows(start, stop)
    first, last = int(rows.min()), int(rows.max())
    if last - first < 2 * len(rows):
        return seen.rows(first, last + 1)[rows - first]
    return np.concatenate([seen.rows(row, row + 1) for row in rows.tolist()])
