"""config.json -> what a GGUF header says about the model, and the rope factors kept as tensors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edgeft.errors import FormatError
from edgeft.merge.view import Merged
from edgeft.models.derived import rope_parameters
from edgeft.weights.checkpoint import Array

FLOATS = ("epsilon", "freq_base", "freq_base_swa", "softcapping", "scale", "factor", "clamp_kqv")
"""ends of GGUF keys that llama.cpp reads as floats, whatever config.json writes"""


def metadata(merged: Merged) -> dict[str, Any]:
    """GGUF key -> value, without the vocabulary."""
    card, config = merged.card, {**merged.card.defaults, **merged.config}
    card.check_runs(config)
    found = {key: card.value(config, source) for key, source in card.hparams.items()}
    found |= _rope(config)[0]
    found |= card.constants
    if card.unwindowed and (window := _window(config)):
        found["context_length"] = min(found["context_length"], window)
    return {f"{card.gguf_arch}.{k}": _typed(k, v) for k, v in found.items() if v is not None}


def rope_factors(merged: Merged) -> dict[str, Array]:
    """Tensor name -> divisors of the rotary frequencies, (rotary dimensions / 2,)."""
    return _rope({**merged.card.defaults, **merged.config})[1]


def _typed(key: str, value: Any) -> Any:
    return float(value) if key.endswith(FLOATS) else value


def _window(config: dict[str, Any]) -> int | None:
    """Tokens that are seen at most in some layer; None: all."""
    if "use_sliding_window" in config:  # Qwen's switch; without it every layer has the window
        slides = "sliding_attention" in (config.get("layer_types") or ["sliding_attention"])
        if not (config["use_sliding_window"] and slides):
            return None
    return config.get("sliding_window") or None


def _rope(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Array]]:
    rope = {"rope_theta": 10000.0, **rope_parameters(config)}
    kind = rope["rope_type"]
    keys: dict[str, Any] = {"rope.freq_base": rope["rope_theta"]}
    if kind == "default":
        return keys, {}
    if kind == "linear":
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": rope["factor"]}
        return keys, {}
    if kind == "yarn":
        return keys | _yarn(config, rope), {}
    if kind == "longrope":
        return keys | _longrope(config, rope), {
            f"rope_factors_{length}.weight": np.asarray(rope[f"{length}_factor"], np.float32)
            for length in ("long", "short")
        }
    if kind == "llama3":
        return keys, {"rope_freqs.weight": _llama3(config, rope)}
    raise FormatError(f"llama.cpp has no rope scaling {kind!r}")


def _yarn(config: dict[str, Any], rope: dict[str, Any]) -> dict[str, Any]:
    """YaRN (arXiv 2309.00071), as transformers' `_compute_yarn_parameters` reads config.json.

    llama.cpp takes the ramp's ends and the attention's factor as the paper has them; what
    `rope.scaling.attn_factor` says is multiplied to the latter (llama-context.cpp).
    """
    ramp = (rope.get("beta_fast") or 32, rope.get("beta_slow") or 1, rope.get("truncate", True))
    if ramp != (32, 1, True):
        raise FormatError(f"llama.cpp does not compute YaRN with the ramp {ramp}")
    old = rope["original_max_position_embeddings"]
    factor = rope.get("factor") or config["max_position_embeddings"] / old
    usual = _magnitude(factor)
    attention = rope.get("attention_factor")
    if attention is None and rope.get("mscale") and rope.get("mscale_all_dim"):
        scales = (_magnitude(factor, rope[key]) for key in ("mscale", "mscale_all_dim"))
        attention = next(scales) / next(scales)
    keys = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": old,
        # Qwen's instructions leave max_position_embeddings at the length before
        "context_length": max(config["max_position_embeddings"], int(factor * old)),
    }
    if attention is not None:
        keys["rope.scaling.attn_factor"] = attention / usual
    return keys


def _magnitude(factor: float, weight: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1


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


def _longrope(config: dict[str, Any], rope: dict[str, Any]) -> dict[str, Any]:
    """Factors for contexts up to the original length and beyond, and one of attention for both.

    llama.cpp chooses by the context that is set up, transformers by the sequence so far.
    transformers, modeling_rope_utils.py: `_compute_longrope_parameters`.
    """
    context = config["max_position_embeddings"]
    old = (
        config.get("original_max_position_embeddings")
        or rope.get("original_max_position_embeddings")
        or context
    )
    factor = rope.get("factor") or context / old
    stretched = math.sqrt(1 + math.log(factor) / math.log(old)) if factor > 1 else 1.0
    return {
        "rope.scaling.type": "longrope",
        "rope.scaling.original_context_length": old,
        "rope.scaling.attn_factor": float(rope.get("attention_factor") or stretched),
    }
