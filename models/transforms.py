"""Named transforms between Hugging Face tensors and GGUF tensors, row by row.

A card names them: `"blk.{i}.attn_q.weight" = "rope_q"`. A transform is data: which rows of the
Hugging Face tensor a block of the GGUF tensor needs (`source_rows`), and what becomes of their
values (`finish`). So a block of a large tensor is made without the rest of the tensor.

    rows = slice(0, 64)                                          # of the GGUF tensor
    needed = transform.source_rows(rows, shape, config)          # of the Hugging Face tensor
    block = transform.finish(tensor[needed], rows, shape, config)

Rows are those of (…, columns) seen as (rows, columns), or the elements of a vector. `shape` is the
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
    """every row of the GGUF tensor is an unchanged row of the Hugging Face tensor"""

    def shape(self, shape: Shape, config: dict[str, Any]) -> Shape:
        """The shape of the GGUF tensor."""
        return shape

    def source_rows(self, rows: Rows, shape: Shape, config: dict[str, Any]) -> Rows:
        """Rows of the Hugging Face tensor that `rows` of the GGUF tensor are made from."""
        return rows

    def finish(self, values: Array, rows: Rows, shape: Shape, config: dict[str, Any]) -> Array:
        """The values of those source rows -> `rows` of the GGUF tensor."""
        return values

    def inverse(self, values: Array, config: dict[str, Any]) -> Array:
        """A whole GGUF tensor -> the whole Hugging Face tensor."""
        return values


@dataclass(frozen=True)
class Plus(Transform):
    """Add a constant: transformers stores these norms around 0, llama.cpp around 1."""

    constant: float
    picks_rows = False

    def finish(self, values: Array, rows: Rows, shape: Shape, config: dict[str, Any]) -> Array:
        return values + np.float32(self.constant)

    def inverse(self, values: Array, config: dict[str, Any]) -> Array:
        return values - np.float32(self.constant)


@dataclass(frozen=True)
class Pick(Transform):
    """Rows in another order, or some of them."""

    order: Callable[[int, dict[str, Any]], npt.NDArray[np.intp]]
    """(number of rows of the Hugging Face tensor, config) -> the source row of each row"""

    def shape(self, shape: Shape, config: dict[str, Any]) -> Shape:
        return (len(self._order(shape, config)), *shape[1:])

    def source_rows(self, rows: Rows, shape: Shape, config: dict[str, Any]) -> Rows:
        numbers: npt.NDArray[np.intp] = self._order(shape, config)[rows]
        return numbers

    def inverse(self, values: Array, config: dict[str, Any]) -> Array:
        return values[np.argsort(self._order(values.shape, config))]

    def _order(self, shape: Shape, config: dict[str, Any]) -> npt.NDArray[np.intp]:
        return self.order(shape[0], config)


class Vector(Transform):
    """A matrix of one row -> a vector."""

    picks_rows = False

    def shape(self, shape: Shape, config: dict[str, Any]) -> Shape:
        return shape[1:]

    def source_rows(self, rows: Rows, shape: Shape, config: dict[str, Any]) -> Rows:
        return slice(0, 1)

    def finish(self, values: Array, rows: Rows, shape: Shape, config: dict[str, Any]) -> Array:
        return values[0, rows]

    def inverse(self, values: Array, config: dict[str, Any]) -> Array:
        return values[None]


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

    def finish(self, values: Array, rows: Rows, shape: Shape, config: dict[str, Any]) -> Array:
        heads, rank, key = self.shape(shape, config)
        head, column = np.divmod(np.arange(heads * rank)[rows], rank)
        used, index = np.unique(head, return_inverse=True)
        return values.reshape(len(used), key, rank)[index, :, column]


class MLAValues(Transform):
    """kv_b_proj -> its values, (heads, value, rank)."""

    picks_rows = False

    def shape(self, shape: Shape, config: dict[str, Any]) -> Shape:
        return config["num_attention_heads"], config["v_head_dim"], shape[1]

    def source_rows(self, rows: Rows, shape: Shape, config: dict[str, Any]) -> Rows:
        heads, width, _ = self.shape(shape, config)
        head, row = np.divmod(np.arange(heads * width)[rows], width)
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
    "rope_q": Pick(_rope_q),
    "rope_k": Pick(_rope_k),
    "plus_one": Plus(1.0),
    "qkv_of_heads": Pick(_qkv_of_heads),
    "vector": Vector(),
    "mla_keys": MLAKeys(),
    "mla_values": MLAValues(),
}
