"""Values that a GGUF header wants and config.json holds only in another form.

DERIVED["head_dim"]({"hidden_size": 64, "num_attention_heads": 4})     # 16
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Config = dict[str, Any]


def rope_parameters(config: Config) -> dict[str, Any]:
    """Of transformers 5's `rope_parameters` or the older `rope_scaling` and `rope_theta`.

    Where layers with a sliding window have their own, these are the other layers'.
    """
    old = {**(config.get("rope_scaling") or {})}
    old.setdefault("rope_type", old.pop("type", "default"))
    theta = config.get("rope_theta", config.get("rotary_emb_base"))
    if theta is not None:
        old["rope_theta"] = theta
    new = config.get("rope_parameters") or {}
    found = {**old, **(new.get("full_attention") or new)}
    if found["rope_type"] in ("llama3", "yarn", "longrope"):
        key = "original_max_position_embeddings"
        found[key] = config.get(key) or found.get(key) or config["max_position_embeddings"]
    return found


def sliding_rope_parameters(config: Config) -> dict[str, Any]:
    """Of the layers with a sliding window, which `rope_scaling` never meant."""
    theta = config.get("rope_local_base_freq", config.get("rope_theta"))
    new = (config.get("rope_parameters") or {}).get("sliding_attention") or {}
    return {"rope_type": "default", "rope_theta": theta, **new}


def head_dim(config: Config) -> int:
    return int(config["hidden_size"] // config["num_attention_heads"])


def rotary_dimensions(config: Config) -> int:
    """How many dimensions of a head are rotated."""
    share = (
        config.get("partial_rotary_factor")
        or rope_parameters(config).get("partial_rotary_factor")
        or config.get("rotary_pct", 1.0)
    )
    return int((config.get("head_dim") or head_dim(config)) * share)


def every_fourth_unrotated(config: Config) -> bool:
    """SmolLM3: whether these and no others are the layers without positions."""
    layers, every = config["num_hidden_layers"], config["no_rope_layer_interval"]
    rotated = config.get("no_rope_layers") or [int((i + 1) % every != 0) for i in range(layers)]
    return rotated == [int((i + 1) % 4 != 0) for i in range(layers)]


def sliding_layers(config: Config) -> list[bool] | None:
    """Which layers have a sliding window; None: it is none of them."""
    layers, period = config["num_hidden_layers"], config["sliding_window_pattern"]
    kinds = config.get("layer_types")
    found = (
        [kind == "sliding_attention" for kind in kinds]
        if kinds
        else [bool((i + 1) % period) for i in range(layers)]
    )
    return found if any(found) else None


def window_in_use(config: Config) -> int | None:
    return config["sliding_window"] if sliding_layers(config) else None


def _query_scalar(config: Config, layers_of_27b: int) -> int:
    """What llama.cpp divides queries by the root of: it knows Gemma's 27B by its layers.

    src/models/gemma2.cpp and gemma3.cpp: `f_attention_scale`.
    """
    largest = config["num_hidden_layers"] == layers_of_27b
    return head_dim(config) if largest else config["head_dim"]


DERIVED: dict[str, Callable[[Config], Any]] = {
    "every_fourth_unrotated": every_fourth_unrotated,
    "head_dim": head_dim,
    # transformers 5 saves some families' under Mixtral's name
    "num_experts": lambda config: config.get("num_local_experts"),
    "num_key_value_heads": lambda config: config["num_attention_heads"],
    "rotary_dimensions": rotary_dimensions,
    "rope_type": lambda config: rope_parameters(config)["rope_type"],
    "rope_theta": lambda config: rope_parameters(config).get("rope_theta"),
    "sliding_rope_type": lambda config: sliding_rope_parameters(config)["rope_type"],
    "sliding_rope_theta": lambda config: sliding_rope_parameters(config)["rope_theta"],
    "sliding_layers": sliding_layers,
    "window_in_use": window_in_use,
    "gemma2_query_scalar": lambda config: _query_scalar(config, 46),
    "gemma3_query_scalar": lambda config: _query_scalar(config, 62),
    "both_soft_caps": lambda config: all(
        config.get(f"{part}_logit_softcapping") for part in ("attn", "final")
    ),
}
