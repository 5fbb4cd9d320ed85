"""What an adapter does to one weight, row by row: replace it, add s·B·A, replace tokens' rows.

    change = WeightDelta(shape, deltas=(LoRA(b, a, scale),))
    change.delta(rows, before, read)              # s·B·A of these rows, float32

The adapter's own matrices stay in their file (`LazyTensor`); rows are read when they are needed.
The tests hold the results to peft's.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgeft.weights.checkpoint import Array, Checkpoint, Rows, as_rows, to_float32

Read = Callable[[Rows], Array]
"""rows of one weight -> their values"""
View = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
"""array -> a view of it: a part, the transpose or another shape"""

BLOCK_VALUES = 1 << 18
"""values in memory at a time while a whole tensor is read"""


@dataclass(frozen=True, eq=False)
class LazyTensor:
    """A tensor of a safetensors file, or a view of one, whose rows are read on demand.

    The file is not mapped in between: an adapter of experts has tens of thousands of tensors.
    """

    name: str
    weights: Checkpoint
    shape: tuple[int, ...]
    views: tuple[View, ...] = ()
    """applied to the stored array in this order"""

    @classmethod
    def open(cls, weights: Checkpoint, name: str) -> LazyTensor:
        return cls(name, weights, weights.tensors[name].shape)

    def __getitem__(self, rows: Rows) -> Array:
        return to_float32(self._raw()[rows], self.weights.tensors[self.name].dtype)

    def view(self, view: View) -> LazyTensor:
        return LazyTensor(self.name, self.weights, view(self._raw()).shape, (*self.views, view))

    def by_rows(self) -> LazyTensor:
        """As (rows, columns)."""
        return self.view(lambda raw: raw.reshape(as_rows(raw.shape)))

    def transposed(self) -> LazyTensor:
        return self.view(np.transpose)

    def equals(self, read: Read, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this shape, whose rows `read` gives, has the same values."""
        return self.shape == shape and all(
            np.array_equal(self[rows], read(rows)) for rows in blocks(shape)
        )

    def is_finite(self) -> bool:
        return all(np.isfinite(self[rows]).all() for rows in blocks(self.shape))

    def _raw(self) -> npt.NDArray[Any]:
        raw = self.weights.raw(self.name).reshape(self.weights.tensors[self.name].shape)
        for view in self.views:
            raw = view(raw)
        return raw


def blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices of the first dimension, about BLOCK_VALUES values each."""
    step = max(1, BLOCK_VALUES // max(1, math.prod(shape[1:])))
    return (slice(start, start + step) for start in range(0, shape[0] if shape else 0, step))


class Delta(Protocol):
    """Something that is added to a weight."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def delta(self, rows: Rows, before: Array, read: Read) -> Array:
        """The values to add to `before`, these rows of the weight; `read` gives any rows of it."""
        ...


@dataclass(frozen=True)
class LoRA:
    """s·B·A (arXiv 2106.09685), or its transpose for a weight that is stored as (in, out)."""

    left: LazyTensor
    """(rows of the weight, r)"""
    right: LazyTensor
    """(r, columns of the weight)"""
    scale: float
    values: LazyTensor | None = None
    """(r, 1): the singular values of AdaLoRA (arXiv 2303.10512), s·B·diag(E)·A"""

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.left.shape[0], self.right.shape[1])

    def delta(self, rows: Rows, before: Array, read: Read) -> Array:
        factors = self.values[:].reshape(-1) if self.values else None
        return lora_delta(self.left[rows], self.right[:], self.scale, factors)


def lora_delta(left: Array, right: Array, scale: float, factors: Array | None = None) -> Array:
    """s·B·diag(factors)·A of some rows of B; training that sees the merged weights computes the same."""
    left = left * np.float32(scale)
    if factors is not None:
        left = left * factors
    product: Array = np.matmul(left, right)
    return product


@dataclass(frozen=True)
class DoRA:
    """m·V/|V| with V = W + s·B·A (arXiv 2402.09353); |V| is taken over the layer's inputs.

    peft 0.21, tuners/lora/variants.py: `DoraLinearVariant.merge_safe`. Where a row of the weight is
    an output, each row has a norm. Of an embedding, and of a weight stored as (in, out), the columns
    are the outputs; their norms need one pass over the whole weight.
    """

    lora: LoRA
    magnitude: LazyTensor
    """(outputs,)"""
    by_column: bool
    """the columns of the weight are the outputs"""
    _norms: list[Array] = field(default_factory=list, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, compare=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.lora.shape

    def delta(self, rows: Rows, before: Array, read: Read) -> Array:
        adapted = before + self.lora.delta(rows, before, read)
        if self.by_column:
            factor = self.magnitude[:] / self._column_norms(read)
        else:
            factor = (self.magnitude[rows] / np.linalg.norm(adapted, axis=1))[:, None]
        change: Array = factor * adapted - before
        return change

    def on_other_base(self) -> DoRA:
        """The same change without the norms of a base that it was added to."""
        return replace(self, _norms=[], _lock=threading.Lock())

    def _column_norms(self, read: Read) -> Array:
        with self._lock:
            if not self._norms:
                squares = np.zeros(self.shape[1])
                for rows in blocks(self.shape):
                    before = read(rows)
                    adapted = before + self.lora.delta(rows, before, read)
                    squares += np.square(adapted, dtype=np.float64).sum(axis=0)
                self._norms.append(np.sqrt(squares).astype(np.float32))
        return self._norms[0]


@dataclass(frozen=True)
class BiasDelta:
    """s·b on a bias (`lora_bias`)."""

    values: LazyTensor
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def delta(self, rows: Rows, before: Array, read: Read) -> Array:
        return self.values[rows] * np.float32(self.scale)


@dataclass(frozen=True)
class Product:
    """s·(B1·A1)∘(B2·A2), elementwise: LoHa (arXiv 2108.06098)."""

    one: LoRA
    other: LoRA
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.one.shape

    def delta(self, rows: Rows, before: Array, read: Read) -> Array:
        one, other = (lora.delta(rows, before, read) for lora in (self.one, self.other))
        return one * other * np.float32(self.scale)


@dataclass(frozen=True)
class Kronecker:
    """s·W1⊗W2, the Kronecker product: LoKr (arXiv 2212.10650)."""

    outer: LazyTensor | LoRA
    """(m, n), or its factors"""
    inner: LazyTensor | LoRA
    """(rows of the weight / m, columns of the weight / n), or its factors"""
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(m * k for m, k in zip(self.outer.shape, self.inner.shape, strict=True))

    def delta(self, rows: Rows, before: Array, read: Read) -> Array:
        outer_rows, inner_rows = np.divmod(np.arange(self.shape[0])[rows], self.inner.shape[0])
        outer, inner = _rows(self.outer, outer_rows), _rows(self.inner, inner_rows)
        product = outer[:, :, None] * inner[:, None, :] * np.float32(self.scale)
        return product.reshape(len(product), -1)


def _rows(matrix: LazyTensor | LoRA, rows: Rows) -> Array:
    if isinstance(matrix, LazyTensor):
        return matrix[rows]
    return matrix.delta(rows, np.empty(0, np.float32), lambda _: np.empty(0, np.float32))


@dataclass(frozen=True)
class Scaled:
    """W·diag(l) or diag(l)·W, less W: IA3 (arXiv 2205.05638)."""

    factors: LazyTensor
    """of the rows, (rows, 1) or (rows,), or of the columns, (1, columns)"""
    shape: tuple[int, ...]
    """of the weight"""

    def delta(self, rows: Rows, before: Array, read: Read) -> Array:
        by_column = self.factors.shape[0] == 1 and self.factors.shape != self.shape[:1]
        factors = self.factors[:] if by_column else self.factors[rows]
        return before * (factors - np.float32(1))


@dataclass(frozen=True)
class TokenRows:
    """Rows of an embedding that were trained alone (`trainable_token_indices`)."""

    indices: tuple[int, ...]
    """token ids"""
    values: LazyTensor
    """(tokens, columns)"""

    def place(self, rows: Rows, values: Array, count: int) -> Array:
        """`values`, these rows of a weight of `count` rows, with the tokens' rows replaced."""
        position = np.full(count, -1)
        position[list(self.indices)] = np.arange(len(self.indices))
        positions = position[rows]
        placed = values.copy()
        placed[positions >= 0] = self.values[positions[positions >= 0]]
        return placed


@dataclass(frozen=True)
class WeightDelta:
    """Everything that an adapter does to one weight, in the order of the fields."""

    shape: tuple[int, ...]
    """of the weight afterwards"""
    whole: LazyTensor | None = None
    """replaces the base's weight (`modules_to_save`, saved biases, resized embeddings)"""
    deltas: tuple[Delta, ...] = ()
    """are added"""
    tokens: TokenRows | None = None
    """replace single rows"""

    def delta(self, rows: Rows, before: Array, read: Read) -> Array:
        """The values to add to `before`, these rows of the weight; `read` gives any rows of it."""
        total = np.zeros_like(before)
        for delta in self.deltas:
            total += delta.delta(rows, before, read)
        return total

    def on_other_base(self) -> WeightDelta:
        """The same change, to be added to other values of the base."""
        deltas = (d.on_other_base() if isinstance(d, DoRA) else d for d in self.deltas)
        return replace(self, deltas=tuple(deltas))

    def equals(self, other: WeightDelta | None) -> bool:
        """Whether both make the same weight of the same weight."""
        return _equal(self, other)


def _equal(one: Any, other: Any) -> bool:
    """Whether two deltas, or parts of them, have the same values."""
    if one is other or type(one) is not type(other):
        return one is other
    if isinstance(one, LazyTensor):
        return one.equals(other.__getitem__, other.shape)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    if is_dataclass(one):
        compared = (f.name for f in fields(one) if f.compare)
        return all(_equal(getattr(one, name), getattr(other, name)) for name in compared)
    return bool(one == other)
