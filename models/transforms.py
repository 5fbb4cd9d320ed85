"""Rows of a Hugging Face tensor -> rows of a GGUF tensor, by a transform that a family's card names.

For example `"blk.{i}.attn_q.weight" = "rope_q"`. A transform says which rows of the Hugging Face
tensor a block of the GGUF tensor needs (`source_rows`) and how their values change (`apply`). So a
block of a large tensor is computed without the rest of the tensor.

    rows = slice(0, 64)                                          # of the GGUF tensor
    needed = transform.source_rows(rows, shape, config)          # of the Hugging Face tensor
    block = transform.apply(tensor[needed], rows, shape, config)

Rows are those of a tensor (…, columns) reshaped to (rows, columns), or the elements of a vector. `shape` is the
Hugging Face tensor's, `config` its config.json.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Rows = slice | npt.NDArray[np.intp]
Shape = tuple[int, ...]


class Transform:
    """The identity, and the base class of the others."""

    picks_rows = True
    """whether every row of the GGUF tensor is an unchanged row of the Hugging Face tensor"""

    def shape(self, shape: Shape, config: dict[str, Any]) -> Shape:
        """The shape of the GGUF tensor."""
        return shape

    def source_rows(self, rows: Rows, shape: Shape, config: dict[str, Any]) -> Rows:
        """Rows of the Hugging Face tensor that `rows` of the GGUF tensor depend on."""
        return rows

    def apply(self, values: Array, rows: Rows, shape: Shape, config: dict[str, Any]) -> Array:
        """The values of `source_rows(rows)` -> `rows` of the GGUF tensor."""
        return values

    def inverse(self, values: Array, config: dict[str, Any]) -> Array:
        """A whole GGUF tensor -> the whole Hugging Face tensor."""
        return values


@dataclass(frozen=True)
class AddConstant(Transform):
    """Add a constant: transformers stores these norms around 0, llama.cpp around 1."""

    constant: float
    picks_rows = False

    def apply(self, values: Array, rows: Rows, shape: Shape, config: dict[str, Any]) -> Array:
        return values + np.float32(self.constant)

    def inverse(self, values: Array, config: dict[str, Any]) -> Array:
        return values - np.float32(self.constant)


@dataclass(frozen=True)
class SelectRows(Transform):
    """Reorder rows, or select some of them."""

    order: Callable[[int, dict[str, Any]], npt.NDArray[np.intp]]
    """(number of rows of the Hugging Face tensor, config) -> the source row of each row"""

    def shape(self, shape: Shape, config: dict[str, Any]) -> Shape:
        return (len(self._order(shape, config)), *shape[1:])

    def source_rows(self, rows: Rows, shape: Shape, config: dict[str, Any]) -> Rows:
        source_rows: npt.NDArray[np.intp] = self._order(shape, config)[rows]
        return source_rows

    def inverse(self, values: Array, config: dict[str, Any]) -> Array:
        return values[np.argsort(self._order(values.shape, config))]

    def _order(self, shape: Shape, config: dict[str, Any]) -> npt.NDArray[np.intp]:
        return self.order(shape[0], config)


class Squeeze(Transform):
    """A matrix of one row -> a vector."""

    picks_rows = False

    def shape(self, shape: Shape, config: dict[str, Any]) -> Shape:
        return shape[1:]

    def source_rows(self, rows: Rows, shape: Shape, config: dict[str, Any]) -> Rows:
        return slice(0, 1)

    def apply(self, values: Array, rows: Rows, shape: Shape, config: dict[str, Any]) -> Array:
        return values[0, rows]

    def inverse(self, values: Array, config: dict[str, Any]) -> Array:
        return values[None]


class ScoreAndZero(Transform):
    """The head of a reward model, (1, width) -> (2, width) with a row of zeros.

    llama.cpp takes the softmax of a head's outputs. Of the score alone it is always 1, of the score and 0 it
    is the sigmoid of the score.
    """

    picks_rows = False

    def shape(self, shape: Shape, config: dict[str, Any]) -> Shape:
        return 2, shape[1]

    def source_rows(self, rows: Rows, shape: Shape, config: dict[str, Any]) -> Rows:
        return slice(0, 1)

    def apply(self, values: Array, rows: Rows, shape: Shape, config: dict[str, Any]) -> Array:
        return np.concatenate([values, np.zeros_like(values)])[rows]

    def inverse(self, values: Array, config: dict[str, Any]) -> Array:
        return values[:1]


class MLAKeys(Transform):
    """kv_b_proj, (heads * (key + value), rank) -> its keys, (heads, rank, key).

    Each head's keys are transposed: llama.cpp multiplies a query by them to reach the compressed
    keys.
    """

    picks_rows = False

    def shape(self, shape: Shape, config: dict[str, Any]) -> Shape:
        return config["num_attention_heads"], shape[1], config["qk_nope_head_dim"]

    def source_rows(self, rows: Rows, shape: Shape, config: dict[str, Any]) -> Rows:
        heads, rank, key = self.shape(shape, config)
        starts = np.unique(np.arange(heads * rank)[rows] // rank) * (shape[0] // heads)
        return (starts[:, None] + np.arange(key)).reshape(-1)

    def apply(self, values: Array, rows: Rows, shape: Shape, config: dict[str, Any]) -> Array:
        heads, rank, key = self.shape(shape, config)
        head, column = np.divmod(np.arange(heads * rank)[rows], rank)
        heads_read, index = np.unique(head, return_inverse=True)
        return values.reshape(len(heads_read), key, rank)[index, :, column]


class MLAValues(Transform):
    """kv_b_proj -> its values, (heads, value, rank)."""

    picks_rows = False

    def shape(self, shape: Shape, config: dict[str, Any]) -> Shape:
        return config["num_attention_heads"], config["v_head_dim"], shape[1]

    def source_rows(self, rows: Rows, shape: Shape, config: dict[str, Any]) -> Rows:
        heads, head_dim, _ = self.shape(shape, config)
        head, row = np.divmod(np.arange(heads * head_dim)[rows], head_dim)
        keys: int = config["qk_nope_head_dim"]
        return head * (shape[0] // heads) + keys + row


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
    "rope_q": SelectRows(_rope_q),
    "rope_k": SelectRows(_rope_k),
    "plus_one": AddConstant(1.0),
    "qkv_of_heads": SelectRows(_qkv_of_heads),
    "vector": Squeeze(),
    "score_and_zero": ScoreAndZero(),
    "mla_keys": MLAKeys(),
    "mla_values": MLAValues(),
}
