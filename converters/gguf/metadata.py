"""Merged view -> the hyperparameters of a GGUF header, and the rope factors stored as tensors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edgeft.errors import FormatError
from edgeft.merge.view import Merged
from edgeft.models.derived import rope_parameters
from edgeft.models.hyperparameters import HYPERPARAMETERS, REQUIRED
from edgeft.records import Message
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import id_to_token
from edgeft.tokenizer.learned_parts import spans
from edgeft.weights.checkpoint import Array
from edgeft.weights.gguf_reader import PADDING_KEY

RANK_POOLING = 4
"""llama.cpp's LLAMA_POOLING_TYPE_RANK"""
FLOAT_KEY_ENDS = (
    "epsilon",
    "freq_base",
    "freq_base_swa",
    "softcapping",
    "scale",
    "factor",
    "clamp_kqv",
)
"""ends of GGUF keys whose values llama.cpp reads as floats; config.json may hold integers"""


def metadata(merged: Merged) -> dict[str, Any]:
    """GGUF key -> value, without the vocabulary."""
    card, config = merged.card, {**merged.card.defaults, **merged.config}
    card.check_runs(config)
    keys = {key: card.value(config, source) for key, source in card.hparams.items()}
    keys |= _rope(config)[0]
    keys |= card.constants
    if card.unwindowed and (window := _sliding_window(config)):
        keys["context_length"] = min(keys["context_length"], window)
    typed = {key: _typed(key, value) for key, value in keys.items() if value is not None}
    for key in REQUIRED:
        if key not in typed:
            raise FormatError(f"config.json has no {card.hparams[key]}", "download it again")
    for key, value in typed.items():
        _check_writable(key, value)
    return {f"{card.gguf_arch}.{key}": value for key, value in typed.items()}


def reward_keys(merged: Merged) -> dict[str, Any]:
    """GGUF key -> value of the head of a reward model; {} for a language model.

    The template "rerank" is what llama-server's /v1/rerank puts query and document into: the chat template's
    question and answer.
    """
    if not merged.is_reward_model:
        return {}
    arch, padding = merged.card.gguf_arch, merged.config["pad_token_id"]
    chat = ChatTemplate.from_folder(merged.tokenizer)
    conversation = (Message("user", "{query}"), Message("assistant", "{document}"))
    text = "".join(part for part, _ in spans(chat, conversation))
    # llama.cpp reads the score at the last token, transformers at the last one that is no padding.
    return {
        f"{arch}.pooling_type": RANK_POOLING,
        f"{arch}.classifier.output_labels": ["score", "zero"],
        PADDING_KEY: padding,
        "tokenizer.chat_template.rerank": text.removesuffix(
            id_to_token(merged.tokenizer).get(padding, "")
        ),
    }


def rope_factors(merged: Merged) -> dict[str, Array]:
    """Tensor name -> divisors of the rotary frequencies, (rotary dimensions / 2,)."""
    return _rope({**merged.card.defaults, **merged.config})[1]


def _typed(key: str, value: Any) -> Any:
    return float(value) if key.endswith(FLOAT_KEY_ENDS) else value


def _check_writable(key: str, value: Any) -> None:
    """FormatError for a value that the header has no type for, or that no model can have."""
    numbers = HYPERPARAMETERS.get(key)
    problem = numbers.problem(value) if numbers else ""
    values = value if isinstance(value, list) else [value]
    if problem or not all(isinstance(item, (bool, int, float, str)) for item in values):
        raise FormatError(
            f"config.json makes {key} {value!r}"[:200] + f", {problem or 'a number is needed'}",
            "download it again",
        )


def _sliding_window(config: dict[str, Any]) -> int | None:
    """Tokens of the smallest attention window of a layer; None where every layer sees all tokens."""
    if "use_sliding_window" in config:  # Qwen's switch; without it every layer has the window
        slides = "sliding_attention" in (config.get("layer_types") or ["sliding_attention"])
        if not (config["use_sliding_window"] and slides):
            return None
    return config.get("sliding_window") or None


def _rope(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Array]]:
    """(GGUF keys, tensors) of the rotary embedding; FormatError for an unknown scaling."""
    rope = {"rope_theta": 10000.0, **rope_parameters(config)}
    rope_type = rope["rope_type"]
    keys: dict[str, Any] = {"rope.freq_base": rope["rope_theta"]}
    if rope_type == "default":
        return keys, {}
    if rope_type == "linear":
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": rope["factor"]}
        return keys, {}
    if rope_type == "yarn":
        return keys | _yarn(config, rope), {}
    if rope_type == "longrope":
        return keys | _longrope(config, rope), {
            f"rope_factors_{length}.weight": np.asarray(rope[f"{length}_factor"], np.float32)
            for length in ("long", "short")
        }
    if rope_type == "llama3":
        return keys, {"rope_freqs.weight": _llama3(config, rope)}
    raise FormatError(f"llama.cpp has no rope scaling {rope_type!r}")


def _yarn(config: dict[str, Any], rope: dict[str, Any]) -> dict[str, Any]:
    """YaRN (arXiv 2309.00071), as transformers' `_compute_yarn_parameters` reads config.json.

    llama.cpp computes the ends of the ramp and the attention factor of the paper. It multiplies the
    latter by `rope.scaling.attn_factor` (llama-context.cpp).
    """
    ramp = (rope.get("beta_fast") or 32, rope.get("beta_slow") or 1, rope.get("truncate", True))
    if ramp != (32, 1, True):
        raise FormatError(f"llama.cpp does not compute YaRN with the ramp {ramp}")
    original_length = rope["original_max_position_embeddings"]
    factor = rope.get("factor") or config["max_position_embeddings"] / original_length
    paper_factor = _yarn_mscale(factor)
    attention = rope.get("attention_factor")
    if attention is None and rope.get("mscale") and rope.get("mscale_all_dim"):
        scales = (_yarn_mscale(factor, rope[key]) for key in ("mscale", "mscale_all_dim"))
        attention = next(scales) / next(scales)
    keys = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": original_length,
        # Qwen's instructions keep max_position_embeddings at the original length
        "context_length": max(config["max_position_embeddings"], int(factor * original_length)),
    }
    if attention is not None:
        keys["rope.scaling.attn_factor"] = attention / paper_factor
    return keys


def _yarn_mscale(factor: float, weight: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1


def _llama3(config: dict[str, Any], rope: dict[str, Any]) -> Array:
    """Llama 3.1's factors: `factor` for long waves, 1 for short ones, a ramp between them.

    transformers, modeling_rope_utils.py: `_compute_llama3_parameters`.
    """
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    wave = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim)
    original_length, factor = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    ramp = np.clip((original_length / wave - low) / (high - low), 0, 1)
    return np.asarray(1 / ((1 - ramp) / factor + ramp), np.float32)


def _longrope(config: dict[str, Any], rope: dict[str, Any]) -> dict[str, Any]:
    """The keys of LongRoPE: its original context length and its attention factor.

    llama.cpp chooses short or long factors by the context size, transformers by the sequence length.
    transformers, modeling_rope_utils.py: `_compute_longrope_parameters`.
    """
    context = config["max_position_embeddings"]
    original_length = (
        config.get("original_max_position_embeddings")
        or rope.get("original_max_position_embeddings")
        or context
    )
    factor = rope.get("factor") or context / original_length
    stretched = math.sqrt(1 + math.log(factor) / math.log(original_length)) if factor > 1 else 1.0
    return {
        "rope.scaling.type": "longrope",
        "rope.scaling.original_context_length": original_length,
        "rope.scaling.attn_factor": float(rope.get("attention_factor") or stretched),
    }
