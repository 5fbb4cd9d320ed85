"""config.json or a GGUF header -> FormatError, or the problem, where a number is none of any model.

    check_config(config, card.hparams, card.defaults)    # "config.json: num_hidden_layers is 0, …"
    HYPERPARAMETERS["block_count"].problem(0)            # "a whole number from 1 to 512 is needed"

An engine takes these numbers as sizes and divisors: it aborts its process, or takes all memory, where
one is 0, negative, huge or NaN. So they are checked before anything is written or loaded. One table
serves both files: a card's `hparams` say which key of config.json is which key of GGUF.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgeft.errors import FormatError


@dataclass(frozen=True)
class Range:
    """The numbers that a hyperparameter may be."""

    low: float
    high: float
    whole: bool = True

    def problem(self, value: Any) -> str:
        """What is needed; "" where `value` is in the range."""
        types = (int,) if self.whole else (int, float)
        if type(value) in types and self.low <= value <= self.high:  # False for NaN
            return ""
        number = "whole number" if self.whole else "number"
        return f"a {number} from {self.low:.10g} to {self.high:.10g} is needed"


LAYERS, EXPERTS = 512, 512
"""LLAMA_MAX_LAYERS and LLAMA_MAX_EXPERTS of llama.cpp's src/llama-hparams.h"""
_TOKENS = Range(1, 2**31 - 1)
_WIDTH = Range(1, 2**24)
_COUNT = Range(0, EXPERTS)
_POSITIVE = Range(1e-30, 1e30, whole=False)
_ANY = Range(-1e30, 1e30, whole=False)

HYPERPARAMETERS = {
    "block_count": Range(1, LAYERS),
    "context_length": _TOKENS,
    "embedding_length": _WIDTH,
    "feed_forward_length": _WIDTH,
    "expert_feed_forward_length": _WIDTH,
    "expert_shared_feed_forward_length": Range(0, _WIDTH.high),
    "vocab_size": _WIDTH,
    "attention.head_count": Range(1, 2**16),
    "attention.head_count_kv": Range(1, 2**16),
    "attention.key_length": Range(1, 2**16),
    "attention.value_length": Range(1, 2**16),
    "attention.key_length_mla": Range(1, 2**16),
    "attention.value_length_mla": Range(1, 2**16),
    "attention.kv_lora_rank": _WIDTH,
    "attention.q_lora_rank": Range(0, _WIDTH.high),
    "attention.sliding_window": Range(0, 2**32 - 1),
    "attention.layer_norm_rms_epsilon": Range(0, 1, whole=False),
    "attention.layer_norm_epsilon": Range(0, 1, whole=False),
    "attention.clamp_kqv": _ANY,
    "attn_logit_softcapping": Range(0, 1e30, whole=False),
    "final_logit_softcapping": Range(0, 1e30, whole=False),
    "expert_count": _COUNT,
    "expert_used_count": _COUNT,
    "expert_shared_count": _COUNT,
    "expert_group_count": _COUNT,
    "expert_group_used_count": _COUNT,
    "expert_weights_scale": _ANY,
    "leading_dense_block_count": Range(0, LAYERS),
    "rope.dimension_count": Range(1, 2**16),
    "rope.freq_base": _POSITIVE,
    "rope.freq_base_swa": _POSITIVE,
    "rope.scaling.factor": Range(0, 1e30, whole=False),
    "rope.scaling.attn_factor": _ANY,
    "rope.scaling.original_context_length": Range(0, _TOKENS.high),
}
"""GGUF key without the architecture -> its numbers"""
REQUIRED = ("block_count", "embedding_length", "attention.head_count")
"""GGUF keys that every model has"""

_OTHER_KEYS = {
    "head_dim": Range(1, 2**16),
    "num_key_value_heads": Range(1, 2**16),
    "kv_channels": Range(1, 2**16),
    "qk_nope_head_dim": Range(1, 2**16),
    "padded_vocab_size": _WIDTH,
    "sliding_window_pattern": Range(1, LAYERS),
    "no_rope_layer_interval": Range(1, LAYERS),
    "original_max_position_embeddings": _TOKENS,
    "query_pre_attn_scalar": _POSITIVE,
    "partial_rotary_factor": Range(1e-6, 1, whole=False),
    "rotary_pct": Range(1e-6, 1, whole=False),
    "rope_theta": _POSITIVE,
    "rope_local_base_freq": _POSITIVE,
    "rotary_emb_base": _POSITIVE,
    "rope_ratio": _POSITIVE,
}
"""key of config.json that is in no card's `hparams` as it is -> its numbers"""
_ROPE_KEYS = {
    "rope_theta": _POSITIVE,
    "factor": _POSITIVE,
    "original_max_position_embeddings": _TOKENS,
    "partial_rotary_factor": Range(1e-6, 1, whole=False),
    "low_freq_factor": _POSITIVE,
    "high_freq_factor": _POSITIVE,
    "attention_factor": _ANY,
    "beta_fast": _ANY,
    "beta_slow": _ANY,
    "mscale": _ANY,
    "mscale_all_dim": _ANY,
}
"""key of `rope_parameters` or `rope_scaling` -> its numbers"""
_FACTOR_LISTS = ("short_factor", "long_factor")
_LISTS = ("layer_types", "no_rope_layers", "mlp_only_layers")


def check_config(
    config: dict[str, Any], hparams: Mapping[str, str], defaults: Mapping[str, Any]
) -> None:
    """FormatError for a value that no model can have; a missing one is for whoever needs it.

    `hparams` and `defaults`: those of the family's card.
    """
    ranges = dict(_OTHER_KEYS)
    for gguf_key, key in hparams.items():
        if gguf_key in HYPERPARAMETERS and not key.startswith("="):
            ranges[key] = HYPERPARAMETERS[gguf_key]
    _check_numbers(config, ranges, "")
    values = {**defaults, **{key: value for key, value in config.items() if value is not None}}
    for key in _LISTS:
        if not isinstance(config.get(key) or [], list):
            raise _refusal(key, config[key], "a list is needed")
    for key in ("rope_parameters", "rope_scaling"):
        _check_rope(key, config.get(key))
    _check_heads({gguf_key: values.get(key) for gguf_key, key in hparams.items()}, hparams)


def _check_numbers(config: dict[str, Any], ranges: dict[str, Range], prefix: str) -> None:
    for key, numbers in ranges.items():
        value = config.get(key)
        if value is None or (value is False and not numbers.low):  # off, as a window may be
            continue
        if problem := numbers.problem(value):
            raise _refusal(prefix + key, value, problem)


def _check_rope(name: str, rope: Any) -> None:
    if not rope:
        return
    if not isinstance(rope, dict):
        raise _refusal(name, rope, "an object is needed")
    for key, value in rope.items():
        if isinstance(value, dict):  # by the type of layer
            _check_rope(f"{name}.{key}", value)
        for factor in value if key in _FACTOR_LISTS and isinstance(value, list) else []:
            if problem := _POSITIVE.problem(factor):
                raise _refusal(f"{name}.{key}", factor, problem)
    for key in ("rope_type", "type"):
        if not isinstance(rope.get(key, ""), str):
            raise _refusal(f"{name}.{key}", rope[key], "a text is needed")
    _check_numbers(rope, _ROPE_KEYS, f"{name}.")
    if (rope.get("high_freq_factor") or 2) <= (rope.get("low_freq_factor") or 1):
        raise _refusal(
            f"{name}.high_freq_factor", rope.get("high_freq_factor"), "the low one is not less"
        )


def _check_heads(values: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """`values`: by GGUF key; `names`: their keys in config.json."""
    heads, kv_heads = values.get("attention.head_count"), values.get("attention.head_count_kv")
    if heads and kv_heads and heads % kv_heads:
        key = names["attention.head_count_kv"]
        raise _refusal(key, kv_heads, f"{heads} heads do not divide by it")


def _refusal(key: str, value: Any, problem: str) -> FormatError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:59] + "…"
    return FormatError(f"config.json: {key} is {shown}, {problem}", "download it again")
