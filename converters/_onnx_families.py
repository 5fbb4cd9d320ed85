"""Which graph a family has in ONNX: a class for onnxruntime-genai's model builder.

    build = builder_class(config)           # FormatError for what cannot be computed
    builder = build(config, ir.DataType.FLOAT, ir.DataType.FLOAT, "cpu", cache_folder, {})
    builder.load_weights = lambda _: module # transformers' own; its weights may be on meta
    builder.make_model("")                  # builder.model is the graph

Nothing but the configuration is looked at here: a model is refused before its weights are read.
"""

from __future__ import annotations

from typing import Any

from edgeft.converters._onnx_graphs import activation, graphs, ropes
from edgeft.errors import FormatError, did_you_mean, require

_KEPT = "--format gguf keeps it"
_NOT_HERE = {
    "DeepseekV2": "its latent attention",
    "DeepseekV3": "its latent attention",
    "ChatGLM": "transformers has no class for it",
}
"""family -> why it has no graph"""
_ROPES = ("default", "linear", "llama3", "yarn")
_ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh")
_SWITCH = 4096
"""the length at which onnxruntime-genai computes a longrope model's cache anew"""


def builder_class(config: Any) -> type:
    """The builder's class for a configuration of transformers, by `config.architectures`."""
    architecture = (config.architectures or [""])[0]
    family = architecture.partition("For")[0].removesuffix("Model")
    if family in _NOT_HERE:
        raise FormatError(f"no ONNX for {architecture}: {_NOT_HERE[family]}", hint=_KEPT)
    require("onnxruntime_genai", "onnx")
    classes = graphs()
    if architecture not in classes:
        raise FormatError(f"no ONNX for {architecture!r}", hint=did_you_mean(architecture, classes))
    _check(config)
    return classes[architecture]


def _check(config: Any) -> None:
    """Refuse the settings that the builder and ONNX Runtime's operators know nothing of."""
    for rope in ropes(config).values():
        kind = rope["rope_type"]
        if kind == "longrope":
            original = rope["original_max_position_embeddings"]
            if original not in (_SWITCH, config.max_position_embeddings):
                raise FormatError(
                    f"onnxruntime-genai changes longrope's factors at {_SWITCH} tokens, "
                    f"this model at {original}", hint=_KEPT,
                )  # fmt: skip
        elif kind not in _ROPES:
            raise FormatError(f"no ONNX for rope of the type {kind!r}", hint=_KEPT)
    act = activation(config)
    mixture = any(hasattr(config, name) for name in ("num_local_experts", "num_experts"))
    if act not in (("silu",) if mixture else _ACTIVATIONS):
        raise FormatError(f"no ONNX for the activation {act!r} in this family", hint=_KEPT)
    if getattr(config, "use_bidirectional_attention", False):
        raise FormatError("use_bidirectional_attention: tokens that see later ones are not a chat")
    heads = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if heads % 8:
        raise FormatError(
            f"ONNX Runtime's attention has heads of multiples of 8, not of {heads}", hint=_KEPT
        )
