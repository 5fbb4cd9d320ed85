"""transformers' configuration of a model -> the settings that its graph depends on, checked.

check_config(config)                    # FormatError for a model that no graph computes
activation(config), layer_types(config), ropes(config)
"""

from __future__ import annotations

import dataclasses
from typing import Any

from edgeft.errors import FormatError

HEAD_COLUMNS = 8
"""columns of a head are a multiple of it, for onnxruntime's attention operator"""
ROPE_TYPES = ("default", "linear", "llama3", "yarn", "longrope")
"""types whose angles do not depend on the length of the text, or only beyond the context"""
ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh")
EXPERT_ACTIVATIONS = ("silu",)
HINT = "--format gguf can hold it"


def check_config(config: Any) -> None:
    """FormatError for settings that onnxruntime's operators do not have."""
    name = architecture(config)
    columns = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if columns % HEAD_COLUMNS:
        raise FormatError(f"onnxruntime's attention has no heads of {columns} columns", HINT)
    for rope in ropes(config):
        if rope["rope_type"] not in ROPE_TYPES:
            raise FormatError(f"a graph has no rope of the type {rope['rope_type']!r}", HINT)
    experts = any(hasattr(config, count) for count in ("num_experts", "num_local_experts"))
    function = activation(config)
    if function not in (EXPERT_ACTIVATIONS if experts else ACTIVATIONS):
        raise FormatError(f"onnxruntime does not compute {function!r} in a {name}", HINT)
    if getattr(config, "use_bidirectional_attention", False):
        raise FormatError(f"onnxruntime's attention does not look ahead, as this {name} does", HINT)


def architecture(config: Any) -> str:
    """transformers' class of the model."""
    return str((config.architectures or ["(none named)"])[0])


def ropes(config: Any) -> list[dict[str, Any]]:
    """Settings of rotary embeddings: one for all layers, or one for each type of layer."""
    settings = config.rope_parameters
    if "rope_type" in settings:
        return [settings]
    return [settings[layer_type] for layer_type in dict.fromkeys(config.layer_types)]


def activation(config: Any) -> str:
    """Name of the feed-forward's function.

    Gemma 2 and 3 call it `hidden_activation`, which other families may have as a leftover.
    """
    name = "hidden_act" if "hidden_act" in _declared(config) else "hidden_activation"
    return str(getattr(config, name))


def layer_types(config: Any) -> list[str]:
    """ "full_attention" or "sliding_attention" for each layer.

    Only settings count that transformers' class declares; others may be left over from training.
    """
    declared = _declared(config)
    if "layer_types" in declared:
        return list(config.layer_types)
    slides = "sliding_window" in declared and config.sliding_window
    return ["sliding_attention" if slides else "full_attention"] * config.num_hidden_layers


def _declared(config: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(config)}
