"""Named transforms between Hugging Face tensors and GGUF tensors, row by row.

A card names them: `"blk.{i}.attn_q.weight" = "rope_q"`. A transform says which rows of the Hugging
Face tensor become which rows of the GGUF tensor, so that a block of a large tensor can be made
without the rest of it. Rows are those of (…, columns) seen as (rows, columns), or the elements of
a vector.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Rows = slice | npt.NDArray[np.intp]
Read = Callable[[Rows], Array]
"""rows of the Hugging Face tensor"""
Shape = tuple[int, ...]


class Transform:
    """The identity; what the others are made from."""

    picks = True
    """its rows are whole rows of the other tensor, as they are"""

    def shape(self, shape: Shape, config: dict[str, Any]) -> Shape:
        """Of the GGUF tensor."""
        return shape

    def take(self, read: Read, rows: Rows, shape: Shape, config: dict[str, Any]) -> Array:
        """Rows of the GGUF tensor; `shape` is the Hugging Face tensor's."""
        return read(rows)

    def inverse(self, values: Array, config: dict[str, Any]) -> Array:
        """A whole GGUF tensor -> the Hugging Face tensor."""
        return values


@dataclass(frozen=True)
class Plus(Transform):
    """A constant more: norms that transformers stores around 0 and llama.cpp around 1."""

    constant: float
    picks = False

    def take(self, read: Read, rows: Rows, shape: Shape, config: dict[str, Any]) -> Array:
        return read(rows) + np.float32(self.constant)

    def inverse(self, values: Array, config: dict[str, Any]) -> Array:
        return values - np.float32(self.constant)


@dataclass(frozen=True)
class Pick(Transform):
    """Rows in another order, or a part of them."""

    order: Callable[[int, dict[str, Any]], npt.NDArray[np.intp]]
    """(rows of the Hugging Face tensor, config) -> which of them each row is"""

    def shape(self, shape: Shape, config: dict[str, Any]) -> Shape:
        return (len(self._order(shape, config)), *shape[1:])

    def take(self, read: Read, rows: Rows, shape: Shape, config: dict[str, Any]) -> Array:
        return read(self._order(shape, config)[rows])

    def inverse(self, values: Array, config: dict[str, Any]) -> Array:
        return values[np.argsort(self._order(values.shape, config))]

    def _order(self, shape: Shape, config: dict[str, Any]) -> npt.NDArray[np.intp]:
        return self.order(shape[0], config)


class Vector(Transform):
    """A matrix of one row -> a vector."""

    picks = False

    def shape(self, shape: Shape, config: dict[str, Any]) -> Shape:
        return shape[1:]

    def take(self, read: Read, rows: Rows, shape: Shape, config: dict[str, Any]) -> Array:
        return read(slice(0, 1))[0, rows]

    def inverse(self, values: Array, config: dict[str, Any]) -> Array:
        return values[None]


class MLAKeys(Transform):
    """kv_b_proj (heads * (key + value), rank) -> its keys, (heads, rank, key): for each head the
    transpose, with which llama.cpp takes a query to the compressed keys."""

    picks = False

    def shape(self, shape: Shape, config: dict[str, Any]) -> Shape:
        return config["num_attention_heads"], shape[1], config["qk_nope_head_dim"]

    def take(self, read: Read, rows: Rows, shape: Shape, config: dict[str, Any]) -> Array:
        heads, rank, key = self.shape(shape, config)
        head, column = np.divmod(np.arange(heads * rank)[rows], rank)
        used, which = np.unique(head, return_inverse=True)
        starts = used * (shape[0] // heads)
        values = read((starts[:, None] + np.arange(key)).reshape(-1))
        return values.reshape(len(used), key, rank)[which, :, column]


class MLAValues(Transform):
    """kv_b_proj -> its values, (heads, value, rank)."""

    picks = False

    def shape(self, shape: Shape, config: dict[str, Any]) -> Shape:
        return config["num_attention_heads"], config["v_head_dim"], shape[1]

    def take(self, read: Read, rows: Rows, shape: Shape, config: dict[str, Any]) -> Array:
        heads, width, _ = self.shape(shape, config)
        head, row = np.divmod(np.arange(heads * width)[rows], width)
        return read(head * (shape[0] // heads) + config["qk_nope_head_dim"] + row)


def _halves_to_pairs(rows: int, heads: int) -> npt.NDArray[np.intp]:
    """(head, half, i) -> (head, i, half): rotary halves become neighbouring pairs."""
    return np.arange(rows).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)


def _rope_q(rows: int, config: dict[str, Any]) -> npt.NDArray[np.intp]:
    return _halves_to_pairs(rows, config["num_attention_heads"])


def _rope_k(rows: int, config: dict[str, Any]) -> npt.NDArray[np.intp]:
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    return _halves_to_pairs(rows, heads)


def _qkv_of_heads(rows: int, config: dict[str, Any]) -> npt.NDArray[np.intp]:
    """(head, q k v, i) -> (q k v, head, i)."""
    heads = config["num_attention_heads"]
    return np.arange(rows).reshape(heads, 3, -1).swapaxes(0, 1).reshape(-1)


IDENTITY = Transform()

TRANSFORMS: dict[str, Transform] = {
    "rope_q": Pick(_rope_q),
    "rope_k": Pick(_rope_k),
    "plus_one": Plus(1.0),
    "qkv_of_heads": Pick(_qkv_of_heads),
    "vector": Vector(),
    "mla_keys": MLAKeys(),
    "mla_values": MLAValues(),
}
