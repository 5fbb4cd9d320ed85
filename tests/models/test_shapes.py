"""The shapes that config.json says are those of the weights, for every family."""

from __future__ import annotations

import pytest
from conftest import Family

from edgeft import models
from edgeft.files import read_json
from edgeft.kv_cache import KV_TYPES, kv_bytes
from edgeft.weights.text_base import open_base
from helpers.families import TINY


@pytest.mark.parametrize("case", TINY)
def test_shapes_from_the_config_are_those_of_the_weights(make: Family, case: str) -> None:
    base = open_base(make(case)[0])
    stored = {
        name: info.shape
        for name, info in base.weights.tensors.items()
        if not base.card.ignores(name)
    }
    text = models.text_model(read_json(base.folder / "config.json"))
    assert models.tensor_shapes(text.card, text.config) == stored


@pytest.mark.unit
def test_the_published_sizes_of_llama_2() -> None:
    """arXiv 2307.09288: 6.74 billion weights; a cache of 0.5 MB for each token in 16 bits."""
    text = models.text_model({"architectures": ["LlamaForCausalLM"], "vocab_size": 32000})
    sizes = models.sizes_of(text.card, text.config)
    shapes = models.tensor_shapes(text.card, text.config)
    count = sum(rows * (columns[0] if columns else 1) for rows, *columns in shapes.values())
    assert count == 6_738_415_616
    assert kv_bytes(sizes.cache_widths, 1, KV_TYPES["f16"]) == 524_288
