"""Bytes of a cache, compared with what llama.cpp keeps of a sequence."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from edgeft.kv_cache import KV_TYPES, CacheWidths, gguf_widths, head_size, kv_bytes
from edgeft.weights import gguf_reader
from helpers.serving import exported
from helpers.tiny import make_base

CELL_BYTES = 16
"""position and number of the sequence, beside the keys and values of a token"""


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kv")
    return exported(make_base(folder / "base", hidden=128), folder, "f16")[0]


@pytest.mark.parametrize("kv_type", list(KV_TYPES))
def test_the_bytes_are_those_of_llama_cpp(gguf: Path, kv_type: str) -> None:
    from edgeft.runtimes.llama_context import LlamaContext, LlamaModel

    with contextlib.closing(LlamaModel(gguf, threads=1, kv_type=kv_type)) as model:
        assert model.cache_widths == gguf_widths(gguf_reader.read(gguf).meta)
        with contextlib.closing(LlamaContext(model, model.context_params(256))) as context:
            sizes = []
            for count in (64, 128):
                context.clear()
                context.decode([(1, position, 0) for position in range(count)], outputs=1)
                sizes.append(len(context.state(0)))
        bytes_ = kv_bytes(model.cache_widths, 64, KV_TYPES[kv_type])
        assert bytes_ == model.cache_bytes(64)
        assert 0 <= sizes[1] - sizes[0] - bytes_ <= 64 * CELL_BYTES


def test_the_types_of_a_real_model() -> None:
    """SmolLM2-135M: 30 layers, 3 heads of 64 keys and 64 values."""
    widths = CacheWidths(30 * 3 * 64, 30 * 3 * 64)
    assert kv_bytes(widths, 4096, KV_TYPES["f16"]) == 94_371_840
    assert kv_bytes(widths, 4096, KV_TYPES["q8_0"]) == 50_135_040
    assert kv_bytes(widths, 4096, KV_TYPES["q4_0"]) == 26_542_080
    assert kv_bytes(widths, 4096, KV_TYPES["q8_0-f16"]) == (94_371_840 + 50_135_040) // 2


def test_headers_with_a_number_per_layer_and_with_compressed_keys() -> None:
    meta = {
        "general.architecture": "x", "x.block_count": 3, "x.embedding_length": 64,
        "x.attention.head_count": [4, 4, 4], "x.attention.head_count_kv": [2, 0, 1],
    }  # fmt: skip
    assert head_size(meta) == 16
    assert gguf_widths(meta) == CacheWidths(48, 48)
    meta |= {"x.attention.key_length": 24, "x.attention.value_length": 8}
    assert gguf_widths(meta) == CacheWidths(72, 24)
    mla = {
        "general.architecture": "x", "x.block_count": 2, "x.attention.head_count": 4,
        "x.attention.head_count_kv": 1, "x.attention.key_length": 40,
        "x.attention.value_length": 32, "x.attention.key_length_mla": 20,
    }  # fmt: skip
    assert gguf_widths(mla) == CacheWidths(80, 0)
