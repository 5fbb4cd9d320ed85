"""What adapters do to one weight, row by row: replaced, s·B·A added, renormalized, tokens replaced.

    change = Change(shape, deltas=(LoRA(b, a, scale),))
    change.delta(rows, before, read)              # what is added to these rows of the weight

The adapter's own matrices stay in their file (`Stored`) and come into memory by rows, as float32.
The oracle of the tests is peft.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgeft.weights.checkpoint import Array, Checkpoint, Rows, as_rows, to_float32

Read = Callable[[Rows], Array]
"""rows of one weight"""

BLOCK = 1 << 18
"""values in memory at a time where a whole tensor is looked at"""


Cut = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
"""a view of an array: cut, transposed or in another shape"""


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor of a safetensors file, or a part of one, that stays there until rows are asked for.

    The file is not kept mapped in between: an adapter of experts has tens of thousands of tensors.
    """

    name: str
    weights: Checkpoint
    shape: tuple[int, ...]
    cuts: tuple[Cut, ...] = ()

    @classmethod
    def open(cls, weights: Checkpoint, name: str) -> Stored:
        return cls(name, weights, weights.tensors[name].shape)

    def __getitem__(self, rows: Rows) -> Array:
        return to_float32(self._raw()[rows], self.weights.tensors[self.name].dtype)

    def by_rows(self) -> Stored:
        """As (rows, columns)."""
        return self.part(lambda raw: raw.reshape(as_rows(raw.shape)))

    def part(self, cut: Cut) -> Stored:
        return Stored(self.name, self.weights, cut(self._raw()).shape, (*self.cuts, cut))

    def transposed(self) -> Stored:
        return self.part(np.transpose)

    def equals(self, read: Read, shape: tuple[int, ...]) -> bool:
        """Whether another tensor's rows hold the same values."""
        return self.shape == shape and all(
            np.array_equal(self[rows], read(rows)) for rows in blocks(shape)
        )

    def is_finite(self) -> bool:
        return all(np.isfinite(self[rows]).all() for rows in blocks(self.shape))

    def _raw(self) -> npt.NDArray[Any]:
        raw = self.weights.raw(self.name).reshape(self.weights.tensors[self.name].shape)
        for cut in self.cuts:
            raw = cut(raw)
        return raw


def blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices of the first dimension, about `BLOCK` values each."""
    step = max(1, BLOCK // max(1, math.prod(shape[1:])))
    return (slice(start, start + step) for start in range(0, shape[0] if shape else 0, step))


class Delta(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...

    def delta(self, rows: Rows, before: Array, read: Read) -> Array:
        """What is added to `before`, the rows of the weight; `read` gives any rows of it."""
        ...

    def same(self, other: Delta) -> bool: ...


@dataclass(frozen=True)
class LoRA:
    """s·B·A (arXiv 2106.09685), or its transpose where the weight is stored as (in, out)."""

    left: Stored
    """(rows of the weight, r)"""
    right: Stored
    """(r, columns)"""
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.left.shape[0], self.right.shape[1])

    def delta(self, rows: Rows, before: Array, read: Read) -> Array:
        product: Array = np.matmul(self.left[rows] * np.float32(self.scale), self.right[:])
        return product

    def same(self, other: Delta) -> bool:
        return (
            isinstance(other, LoRA)
            and self.scale == other.scale
            and _equal(self.left, other.left)
            and _equal(self.right, other.right)
        )


@dataclass(frozen=True)
class DoRA:
    """m·V/|V| with V = W + s·B·A (arXiv 2402.09353); |V| is taken over the input of the layer.

    peft 0.21, tuners/lora/variants.py: `DoraLinearVariant.merge_safe`. Where a row of the weight is
    an output, that is one norm a row. Of an embedding, and of a weight stored as (in, out), the
    outputs are the columns, whose norms need the whole weight once.
    """

    lora: LoRA
    magnitude: Stored
    by_column: bool
    _norms: list[Array] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.lora.shape

    def delta(self, rows: Rows, before: Array, read: Read) -> Array:
        moved = before + self.lora.delta(rows, before, read)
        if self.by_column:
            factor = self.magnitude[:] / self._column_norms(read)
        else:
            factor = (self.magnitude[rows] / np.linalg.norm(moved, axis=1))[:, None]
        change: Array = factor * moved - before
        return change

    def same(self, other: Delta) -> bool:
        return (
            isinstance(other, DoRA)
            and self.by_column == other.by_column
            and self.lora.same(other.lora)
            and _equal(self.magnitude, other.magnitude)
        )

    def _column_norms(self, read: Read) -> Array:
        with self._lock:
            if not self._norms:
                squares = np.zeros(self.shape[1])
                for rows in blocks(self.shape):
                    before = read(rows)
                    moved = before + self.lora.delta(rows, before, read)
                    squares += np.square(moved, dtype=np.float64).sum(axis=0)
                self._norms.append(np.sqrt(squares).astype(np.float32))
        return self._norms[0]


@dataclass(frozen=True)
class Shift:
    """s·b on a bias (`lora_bias`)."""

    values: Stored
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def delta(self, rows: Rows, before: Array, read: Read) -> Array:
        return self.values[rows] * np.float32(self.scale)

    def same(self, other: Delta) -> bool:
        return (
            isinstance(other, Shift)
            and self.scale == other.scale
            and _equal(self.values, other.values)
        )


@dataclass(frozen=True)
class Tokens:
    """Rows of an embedding that were trained alone (`trainable_token_indices`)."""

    indices: tuple[int, ...]
    values: Stored

    def place(self, rows: Rows, values: Array, count: int) -> Array:
        """`values`, these rows of a weight of `count` rows, with the tokens' rows replaced."""
        index = np.full(count, -1)
        index[list(self.indices)] = np.arange(len(self.indices))
        wanted = index[rows]
        placed = values.copy()
        placed[wanted >= 0] = self.values[wanted[wanted >= 0]]
        return placed

    def same(self, other: Tokens) -> bool:
        return self.indices == other.indices and _equal(self.values, other.values)


@dataclass(frozen=True)
class Change:
    """All that happens to one weight, in this order."""

    shape: tuple[int, ...]
    """of the weight afterwards"""
    whole: Stored | None = None
    """stands in for the base's (`modules_to_save`, saved biases, resized embeddings)"""
    deltas: tuple[Delta, ...] = ()
    tokens: Tokens | None = None

    def delta(self, rows: Rows, before: Array, read: Read) -> Array:
        """What is added to `before`, these rows of the weight; `read` gives any rows of it."""
        total = np.zeros_like(before)
        for delta in self.deltas:
            total += delta.delta(rows, before, read)
        return total

    def same(self, other: Change | None) -> bool:
        """Whether both make the same weight of the same weight."""
        return (
            other is not None
            and self.shape == other.shape
            and _both(self.whole, other.whole, _equal)
            and _both(self.tokens, other.tokens, Tokens.same)
            and len(self.deltas) == len(other.deltas)
            and all(x.same(y) for x, y in zip(self.deltas, other.deltas, strict=True))
        )


def _equal(one: Stored, other: Stored) -> bool:
    return one is other or one.equals(other.__getitem__, other.shape)


def _both(one: Any, other: Any, same: Callable[[Any, Any], bool]) -> bool:
    return one is other if one is None or other is None else same(one, other)
