"""Named transforms between a Hugging Face tensor and its GGUF tensor.

A card names them; `forward` is Hugging Face -> GGUF, `inverse` the way back. Each takes and
returns an array of the same shape, whose rows are output features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Transform = Callable[[Array, dict[str, Any]], Array]


def _heads(config: dict[str, Any], key: str) -> int:
    return int(config.get(key) or config["num_attention_heads"])


def _halves_to_pairs(weight: Array, heads: int) -> Array:
    """Rows (head, half, i) -> (head, i, half): rotary halves become neighbouring pairs."""
    shape = weight.shape
    split = weight.reshape(heads, 2, shape[0] // heads // 2, *shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(shape)


def _pairs_to_halves(weight: Array, heads: int) -> Array:
    shape = weight.shape
    split = weight.reshape(heads, shape[0] // heads // 2, 2, *shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(shape)


FORWARD: dict[str, Transform] = {
    "rope_q": lambda w, config: _halves_to_pairs(w, _heads(config, "num_attention_heads")),
    "rope_k": lambda w, config: _halves_to_pairs(w, _heads(config, "num_key_value_heads")),
}
INVERSE: dict[str, Transform] = {
    "rope_q": lambda w, config: _pairs_to_halves(w, _heads(config, "num_attention_heads")),
    "rope_k": lambda w, config: _pairs_to_halves(w, _heads(config, "num_key_value_heads")),
}
