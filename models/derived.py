"""Values that a GGUF header wants and config.json holds only in another form.

DERIVED["head_dim"]({"hidden_size": 64, "num_attention_heads": 4})     # 16
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgeft.errors import FormatError

Config = dict[str, Any]


def rope_parameters(config: Config) -> dict[str, Any]:
    """Of transformers 5's `rope_parameters` or the older `rope_scaling` and `rope_theta`."""
    if "rope_ratio" in config:
        return _chatglm_rope(config)
    old = {**(config.get("rope_scaling") or {})}
    old.setdefault("rope_type", old.pop("type", "default"))
    if config.get("rope_theta") is not None:
        old["rope_theta"] = config["rope_theta"]
    return {**old, **(config.get("rope_parameters") or {})}


def _chatglm_rope(config: Config) -> dict[str, Any]:
    """ChatGLM2-32k divides positions by `rope_ratio`, what came after multiplies the base with it.

    So says the code that came with each; in config.json only the name tells ChatGLM2 from 3.
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
    return int(config["hidden_size"] // config["num_attention_heads"])


def rotary_dimensions(config: Config) -> int:
    """How many dimensions of a head are rotated."""
    share = rope_parameters(config).get("partial_rotary_factor")
    share = share or config.get("partial_rotary_factor") or 1.0
    return int((config.get("head_dim") or head_dim(config)) * share)


def heads_width(config: Config) -> int:
    """Of all heads together."""
    width = config.get("kv_channels") or config.get("head_dim") or head_dim(config)
    return int(width * config["num_attention_heads"])


def expert_groups(config: Config) -> str:
    """DeepSeek: how the groups are chosen among whose experts a token chooses."""
    groups, used = config.get("n_group") or 1, config.get("topk_group") or 1
    limited = config.get("topk_method") == "group_limited_greedy" and used < groups
    return "by their best expert" if limited else "all"


def mla_rope(config: Config) -> str:
    """What scales DeepSeek's rotation and, with it, its attention."""
    rope = rope_parameters(config)
    if rope["rope_type"] != "yarn":
        return str(rope["rope_type"])
    one = rope.get("mscale_all_dim") and rope.get("mscale") == rope["mscale_all_dim"]
    return f"yarn, {'one mscale' if one and not rope.get('attention_factor') else 'two scales'}"


def yarn_log_mul(config: Config) -> float | None:
    """In llama.cpp's unit for this architecture (conversion/deepseek.py)."""
    rope = rope_parameters(config)
    return 0.1 * rope["mscale_all_dim"] if rope.get("mscale_all_dim") else None


def q_lora_rank_read(config: Config) -> bool:
    """llama.cpp knows by the number of layers that V2-Lite has no q_lora_rank, and skips it."""
    lite = config["num_hidden_layers"] in (26, 27)
    return not (lite and config.get("q_lora_rank"))


DERIVED: dict[str, Callable[[Config], Any]] = {
    "head_dim": head_dim,
    "num_key_value_heads": lambda config: config["num_attention_heads"],
    "rotary_dimensions": rotary_dimensions,
    "heads_width": heads_width,
    "expert_groups": expert_groups,
    "mla_rope": mla_rope,
    "yarn_log_mul": yarn_log_mul,
    "q_lora_rank": lambda config: 0,  # llama.cpp asks for the key, but for 26 and 27 layers
    "q_lora_rank_read": q_lora_rank_read,
    "mla_key_length": lambda config: config["kv_lora_rank"] + config["qk_rope_head_dim"],
    "mla_head_dim": lambda config: config["qk_nope_head_dim"] + config["qk_rope_head_dim"],
}
