"""The widths of a model's keys and values, tokens and a type -> bytes of their cache.

kv_bytes(gguf_widths(header.meta), tokens=4096, kv_type="q8_0")
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BLOCK_VALUES = 32
"""of q8_0 and q4_0; a head must be a multiple of it"""
_BYTES_PER_VALUE = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / BLOCK_VALUES, "q4_0": 18 / BLOCK_VALUES}
"""ggml type -> bytes (ggml-common.h)"""


@dataclass(frozen=True)
class KVType:
    """The ggml types of a cache."""

    keys: str
    values: str

    @property
    def is_quantized(self) -> bool:
        return "q" in self.keys + self.values


KV_TYPES = {
    "f16": KVType("f16", "f16"),
    "q8_0-f16": KVType("q8_0", "f16"),
    "q8_0": KVType("q8_0", "q8_0"),
    "q4_0": KVType("q4_0", "q4_0"),
}
"""name as in --kv-type -> types, from the most to the least exact"""
EXACT_TYPE = KVType("f32", "f32")
"""of a runtime that computes attention in float32"""


@dataclass(frozen=True)
class CacheWidths:
    """Values that a model keeps of one token, all layers together."""

    keys: int
    values: int


def kv_bytes(widths: CacheWidths, tokens: int, kv_type: KVType) -> int:
    """Bytes of the keys and values of so many tokens."""
    keys, values = _BYTES_PER_VALUE[kv_type.keys], _BYTES_PER_VALUE[kv_type.values]
    return int(tokens * (widths.keys * keys + widths.values * values))


def head_size(meta: Mapping[str, Any]) -> int:
    """Values of a head's keys, by the metadata of a GGUF header."""
    heads = max(1, _number(meta, "attention.head_count", 1))
    return _number(meta, "attention.key_length", _number(meta, "embedding_length") // heads)


def gguf_widths(meta: Mapping[str, Any]) -> CacheWidths:
    """By the metadata of a GGUF header. Layers that keep a state instead have 0 heads there."""
    size = head_size(meta)
    kv_heads = meta.get(_key(meta, "attention.head_count_kv"))
    if isinstance(kv_heads, list):
        heads = sum(kv_heads)
    else:
        default = _number(meta, "attention.head_count", 1)
        heads = _number(meta, "block_count") * int(default if kv_heads is None else kv_heads)
    if _key(meta, "attention.key_length_mla") in meta:  # values are a part of the keys
        return CacheWidths(heads * size, 0)
    return CacheWidths(heads * size, heads * _number(meta, "attention.value_length", size))


def _key(meta: Mapping[str, Any], name: str) -> str:
    return f"{meta.get('general.architecture')}.{name}"


def _number(meta: Mapping[str, Any], name: str, default: int = 0) -> int:
    """The largest one where each layer has its own."""
    value = meta.get(_key(meta, name), default)
    return int(max(value) if isinstance(value, list) else value)
