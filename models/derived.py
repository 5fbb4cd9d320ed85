"""config.json -> values of a GGUF header that it holds only in another form.

    DERIVED["head_dim"]({"hidden_size": 64, "num_attention_heads": 4})     # 16

A card names them with "=" in front. The config that a function gets includes the card's defaults.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgeft.errors import FormatError

Config = dict[str, Any]
"""config.json"""


def rope_parameters(config: Config) -> dict[str, Any]:
    """transformers 5's `rope_parameters`, also from the older `rope_scaling` and `rope_theta`.

    Where layers with a sliding window have other parameters, these are those of the full-attention
    layers.
    """
    if "rope_ratio" in config:
        return _chatglm_rope(config)
    old = {**(config.get("rope_scaling") or {})}
    old.setdefault("rope_type", old.pop("type", "default"))
    theta = config.get("rope_theta", config.get("rotary_emb_base"))
    if theta is not None:
        old["rope_theta"] = theta
    new = config.get("rope_parameters") or {}
    rope = {**old, **(new.get("full_attention") or new)}
    if rope["rope_type"] in ("llama3", "yarn", "longrope"):
        key = "original_max_position_embeddings"
        rope[key] = config.get(key) or rope.get(key) or config["max_position_embeddings"]
    return rope


def sliding_rope_parameters(config: Config) -> dict[str, Any]:
    """`rope_parameters` of the layers with a sliding window; `rope_scaling` never applies there."""
    theta = config.get("rope_local_base_freq", config.get("rope_theta"))
    new = (config.get("rope_parameters") or {}).get("sliding_attention") or {}
    return {"rope_type": "default", "rope_theta": theta, **new}


def _chatglm_rope(config: Config) -> dict[str, Any]:
    """ChatGLM2-32k divides positions by `rope_ratio`; later models multiply the rope base by it.

    Source: the code that comes with each model. In config.json only the model's name distinguishes
    ChatGLM 2 from 3; FormatError where that name is missing and matters.
    """
    ratio, name = config["rope_ratio"], str(config.get("_name_or_path")).lower()
    if ratio != 1 and "chatglm2" in name:
        return {"rope_type": "linear", "rope_theta": 10000.0, "factor": ratio}
    if ratio == 1 or "chatglm3" in name or config["padded_vocab_size"] > 100_000:  # GLM-4
        return {"rope_type": "default", "rope_theta": 10000.0 * ratio}
    raise FormatError(
        f"config.json does not say what its rope_ratio {ratio} means",
        'put "_name_or_path": "THUDM/chatglm2-6b-32k" or "THUDM/chatglm3-6b-32k" into it',
    )


def head_dim(config: Config) -> int:
    """Width of an attention head, where config.json does not say it."""
    return int(config["hidden_size"] // config["num_attention_heads"])


def rotary_dimensions(config: Config) -> int:
    """How many dimensions of a head the rotary embedding rotates."""
    share = (
        rope_parameters(config).get("partial_rotary_factor")
        or config.get("partial_rotary_factor")
        or config.get("rotary_pct", 1.0)
    )
    return int((config.get("head_dim") or head_dim(config)) * share)


def every_fourth_unrotated(config: Config) -> bool:
    """SmolLM3: whether exactly every fourth layer has no rotary embedding."""
    layers, every = config["num_hidden_layers"], config["no_rope_layer_interval"]
    rotated = config.get("no_rope_layers") or [int((i + 1) % every != 0) for i in range(layers)]
    return rotated == [int((i + 1) % 4 != 0) for i in range(layers)]


def sliding_layers(config: Config) -> list[bool] | None:
    """For each layer whether it has a sliding window; None where no layer has one."""
    layers, period = config["num_hidden_layers"], config["sliding_window_pattern"]
    layer_types = config.get("layer_types")
    sliding = (
        [layer_type == "sliding_attention" for layer_type in layer_types]
        if layer_types
        else [bool((i + 1) % period) for i in range(layers)]
    )
    return sliding if any(sliding) else None


def window_in_use(config: Config) -> int | None:
    """Tokens of the sliding window, None where no layer has one."""
    return config["sliding_window"] if sliding_layers(config) else None


def _query_scalar(config: Config, layers_of_27b: int) -> int:
    """The number by whose square root llama.cpp divides queries of Gemma 2 and 3.

    It recognises the 27B model by its number of layers (`f_attention_scale` in
    src/models/gemma2.cpp and gemma3.cpp).
    """
    largest = config["num_hidden_layers"] == layers_of_27b
    return head_dim(config) if largest else config["head_dim"]


def heads_width(config: Config) -> int:
    """Width of all attention heads together."""
    width = config.get("kv_channels") or config.get("head_dim") or head_dim(config)
    return int(width * config["num_attention_heads"])


def expert_groups(config: Config) -> str:
    """DeepSeek: which groups' experts a token may choose, "all" or "by their best expert"."""
    groups, chosen = config.get("n_group") or 1, config.get("topk_group") or 1
    limited = config.get("topk_method") == "group_limited_greedy" and chosen < groups
    return "by their best expert" if limited else "all"


def mla_rope(config: Config) -> str:
    """DeepSeek: the rope type; for yarn also whether one mscale scales rotation and attention."""
    rope = rope_parameters(config)
    if rope["rope_type"] != "yarn":
        return str(rope["rope_type"])
    one = rope.get("mscale_all_dim") and rope.get("mscale") == rope["mscale_all_dim"]
    return f"yarn, {'one mscale' if one and not rope.get('attention_factor') else 'two scales'}"


def yarn_log_mul(config: Config) -> float | None:
    """DeepSeek: llama.cpp's `rope.scaling.yarn_log_multiplier` (conversion/deepseek.py)."""
    rope = rope_parameters(config)
    return 0.1 * rope["mscale_all_dim"] if rope.get("mscale_all_dim") else None


def q_lora_rank_read(config: Config) -> bool:
    """Whether llama.cpp reads `q_lora_rank` as config.json has it.

    It takes a model of 26 or 27 layers for V2-Lite, which has none, and skips the key.
    """
    lite = config["num_hidden_layers"] in (26, 27)
    return not (lite and config.get("q_lora_rank"))


DERIVED: dict[str, Callable[[Config], Any]] = {
    "every_fourth_unrotated": every_fourth_unrotated,
    "head_dim": head_dim,
    # transformers 5 saves that of some families under Mixtral's name.
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
    "heads_width": heads_width,
    "expert_groups": expert_groups,
    "mla_rope": mla_rope,
    "yarn_log_mul": yarn_log_mul,
    "q_lora_rank": lambda config: 0,  # llama.cpp requires the key, except for 26 and 27 layers
    "q_lora_rank_read": q_lora_rank_read,
    "mla_key_length": lambda config: config["kv_lora_rank"] + config["qk_rope_head_dim"],
    "mla_head_dim": lambda config: config["qk_nope_head_dim"] + config["qk_rope_head_dim"],
}
"""name in a card -> the value from config.json; None where the model has none"""
