"""Values that a GGUF header wants and config.json holds only in another form.

DERIVED["head_dim"]({"hidden_size": 64, "num_attention_heads": 4})     # 16
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Config = dict[str, Any]


def rope_parameters(config: Config) -> dict[str, Any]:
    """Of transformers 5's `rope_parameters` or the older `rope_scaling` and `rope_theta`."""
    old = {**(config.get("rope_scaling") or {})}
    old.setdefault("rope_type", old.pop("type", "default"))
    if config.get("rope_theta") is not None:
        old["rope_theta"] = config["rope_theta"]
    found = {**old, **(config.get("rope_parameters") or {})}
    if found["rope_type"] in ("llama3", "yarn", "longrope"):
        key = "original_max_position_embeddings"
        found[key] = config.get(key) or found.get(key) or config["max_position_embeddings"]
    return found


def head_dim(config: Config) -> int:
    return int(config["hidden_size"] // config["num_attention_heads"])


def rotary_dimensions(config: Config) -> int:
    """How many dimensions of a head are rotated."""
    share = config.get("partial_rotary_factor") or rope_parameters(config).get(
        "partial_rotary_factor", 1.0
    )
    return int((config.get("head_dim") or head_dim(config)) * share)


def every_fourth_unrotated(config: Config) -> bool:
    """SmolLM3: whether these and no others are the layers without positions."""
    layers, every = config["num_hidden_layers"], config["no_rope_layer_interval"]
    rotated = config.get("no_rope_layers") or [int((i + 1) % every != 0) for i in range(layers)]
    return rotated == [int((i + 1) % 4 != 0) for i in range(layers)]


DERIVED: dict[str, Callable[[Config], Any]] = {
    "every_fourth_unrotated": every_fourth_unrotated,
    "head_dim": head_dim,
    # transformers 5 saves some families' under Mixtral's name
    "num_experts": lambda config: config.get("num_local_experts"),
    "num_key_value_heads": lambda config: config["num_attention_heads"],
    "rotary_dimensions": rotary_dimensions,
    "rope_type": lambda config: rope_parameters(config)["rope_type"],
}
