"""config.json -> what a GGUF header says about the model, and the rope factors kept as tensors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edgeft.checkpoint import Array
from edgeft.errors import FormatError
from edgeft.merge import Merged
from edgeft.models import Card
from edgeft.models.derived import rope_parameters

FLOATS = ("epsilon", "freq_base", "freq_base_swa", "softcapping", "scale", "factor", "clamp_kqv",
          "expert_weights_scale")  # fmt: skip
"""last parts of GGUF keys that llama.cpp reads as floats, whatever config.json writes"""


def metadata(merged: Merged) -> dict[str, Any]:
    """GGUF key -> value, without the vocabulary."""
    config, card = merged.config, merged.card
    _check(config, card)
    found = {key: card.value(config, source) for key, source in card.hparams.items()}
    found |= _rope({**card.defaults, **config})[0]
    found |= card.constants
    return {f"{card.gguf_arch}.{k}": _typed(k, v) for k, v in found.items() if v is not None}


def rope_factors(merged: Merged) -> dict[str, Array]:
    """Tensor name -> divisors of the rotary frequencies, (rotary dimensions / 2,)."""
    return _rope({**merged.card.defaults, **merged.config})[1]


def _typed(key: str, value: Any) -> Any:
    return float(value) if key.rpartition(".")[2] in FLOATS else value


def _check(config: dict[str, Any], card: Card) -> None:
    """FormatError for a model that llama.cpp would compute as another one."""
    for key, allowed in card.requires.items():
        value = card.value(config, key)
        wanted = [card.value(config, allowed)] if isinstance(allowed, str) else allowed
        if value is not None and value not in wanted:
            raise FormatError(
                f"llama.cpp does not compute {card.family} models with {key.lstrip('=')} {value!r}",
                f"only {' or '.join(map(repr, wanted))}" if wanted else "",
            )


def _rope(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Array]]:
    rope = rope_parameters(config)
    kind = rope["rope_type"]
    keys: dict[str, Any] = {"rope.freq_base": rope.get("rope_theta", 10000.0)}
    if kind == "default":
        return keys, {}
    if kind == "linear":
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": rope["factor"]}
        return keys, {}
    if kind == "yarn":
        keys |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": rope["factor"],
            "rope.scaling.original_context_length": rope["original_max_position_embeddings"],
        }
        return keys, {}
    if kind == "llama3":
        return keys, {"rope_freqs.weight": _llama3(config, rope)}
    raise FormatError(f"GGUF export does not write rope scaling {kind!r} yet")


def _llama3(config: dict[str, Any], rope: dict[str, Any]) -> Array:
    """Llama 3.1's factors: long waves are stretched, short ones kept, with a ramp between.

    transformers, modeling_rope_utils.py: `_compute_llama3_parameters`.
    """
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    wave = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, width, 2) / width)
    old, factor = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    ramp = np.clip((old / wave - low) / (high - low), 0, 1)
    return np.asarray(1 / ((1 - ramp) / factor + ramp), np.float32)
