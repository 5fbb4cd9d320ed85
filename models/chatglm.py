"""A ChatGLM 2 or 3 checkpoint -> the config and the weights of transformers' GLM, the same model.

Only names differ, and that the checkpoint has the query, key and value projections in one matrix.

    config = glm_config(config_json)                          # transformers' GlmConfig
    glm_source(config_json, "model.layers.3.self_attn.k_proj.weight")   # (name, its rows)

transformers does not have ChatGLM's own code, and code that comes with a model is never run.
"""

from __future__ import annotations

import re
from typing import Any

from edgeft.errors import require
from edgeft.models.derived import rope_parameters
from edgeft.models.text_model import card_for

FAMILY = "chatglm"
NAMES = {
    "lm_head": "transformer.output_layer",
    "model.embed_tokens": "transformer.embedding.word_embeddings",
    "model.norm": "transformer.encoder.final_layernorm",
    "model.layers": "transformer.encoder.layers",
    "self_attn.o_proj": "self_attention.dense",
    "gate_up_proj": "dense_h_to_4h",
    "down_proj": "dense_4h_to_h",
}
"""part of a parameter's name in transformers -> the same part in the checkpoint"""


def glm_config(config: dict[str, Any]) -> Any:
    """The `transformers.GlmConfig` of the model that a ChatGLM's config.json describes."""
    transformers = require("transformers", "train")
    known = _with_defaults(config)
    return transformers.GlmConfig(
        architectures=["GlmForCausalLM"],
        vocab_size=known["padded_vocab_size"],
        hidden_size=known["hidden_size"],
        intermediate_size=known["ffn_hidden_size"],
        num_hidden_layers=known["num_layers"],
        num_attention_heads=known["num_attention_heads"],
        num_key_value_heads=known["multi_query_group_num"],
        head_dim=known["kv_channels"],
        attention_bias=bool(known.get("add_qkv_bias")),
        max_position_embeddings=known["seq_length"],
        rms_norm_eps=known["layernorm_epsilon"],
        rope_parameters={**rope_parameters(known), "partial_rotary_factor": 0.5},
        **{key: known.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
    )


def glm_source(config: dict[str, Any], name: str) -> tuple[str, slice]:
    """(tensor of the checkpoint, its rows) that hold a parameter of `GlmForCausalLM`."""
    known = _with_defaults(config)
    for live, stored in NAMES.items():
        name = name.replace(live, stored)
    match = re.search(r"self_attn\.(q|k|v)_proj", name)
    if not match:
        return name, slice(None)
    width = known["kv_channels"]
    query, key = known["num_attention_heads"] * width, known["multi_query_group_num"] * width
    starts = {"q": (0, query), "k": (query, query + key), "v": (query + key, query + 2 * key)}
    packed = name.replace(match[0], "self_attention.query_key_value")
    return packed, slice(*starts[match[1]])


def _with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    return {**card_for(config).defaults, **config}
