"""A configuration + the Merged view -> onnxruntime-genai's builder of a plain decoder graph.

    builder = Decoder(config, FLOAT, FLOAT, "cpu", str(out), options)
    builder.merged = merged
    builder.make_model("")

`Decoder` is the common base of all families (`edgeft.converters.onnx.families`). It differs from
onnxruntime-genai's own class where that one does not give transformers' logits: rotary tables are
those that transformers' module computes, whatever their type, and sliding windows are those that
transformers uses.

This module imports torch and onnxruntime_genai: import it inside functions.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from onnx_ir import DataType

from edgeft.converters.onnx.lazy_tensor import LazyTorchTensor, lazy_model
from edgeft.converters.onnx.model_config import activation, layer_types, ropes
from edgeft.merge.view import Merged

PLAIN_MODEL = "llama"
"""onnxruntime-genai's type of a decoder without peculiarities"""
FUSED_ROPE_COLUMNS = 16
"""the attention operator rotates a multiple of it; other heads need an operator before it"""


@contextlib.contextmanager
def _path_restored() -> Iterator[None]:
    """The builder adds its own folder to sys.path, where `quantization` would hide other modules."""
    before = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = before


with _path_restored():
    import onnxruntime_genai.models  # noqa: F401 - makes the builders importable
    from onnxruntime_genai.models import builders


Gemma2Model = builders.Gemma2Model
"""onnxruntime-genai's layer with norms before and after attention and feed-forward"""


class Decoder(builders.Model):  # type: ignore[misc]
    """Llama's architecture, and the common base of the others."""

    model_type: Any
    intermediate_size: Any
    runs_as = ""
    """type for genai_config.json, where onnxruntime-genai does not run the family's own"""
    qk_norm = False
    """queries and keys are normalized"""
    merged: Merged
    """the weights; set before `make_model`"""

    def __init__(self, config: Any, *args: Any) -> None:
        super().__init__(config, *args)
        epsilon = getattr(config, "rms_norm_eps", None) or getattr(
            config, "layer_norm_eps", self.layernorm_attrs["epsilon"]
        )
        self.layernorm_attrs["epsilon"] = epsilon
        self.layer_types = layer_types(config)
        self.activation = activation(config)
        self.model_type = self.runs_as or self.model_type
        self.lazy: dict[str, LazyTorchTensor] = {}
        """name of a constant in the graph -> its matrix, which no file holds yet"""

    def load_weights(self, input_path: str) -> Any:
        return lazy_model(self.merged)

    def make_initializer(self, tensor: Any, /, name: str, **kwargs: Any) -> None:
        if isinstance(tensor, LazyTorchTensor):
            self.lazy[name] = tensor
            kwargs["to"] = DataType.FLOAT
        super().make_initializer(tensor, name, **kwargs)

    def make_config_init(self, config: Any) -> None:
        """Do nothing: the builder would take rotary settings for the model's."""

    def make_rope_init(self, config: Any) -> None:
        """Decide which columns are rotated; `make_attention_qk_rope` makes the tables."""
        rope = config.rope_parameters
        self.rope_by_type = "rope_type" not in rope
        share = ropes(config)[0].get("partial_rotary_factor", 1.0)
        self.rotary_columns = int(self.head_size * share)
        if not self.rope_by_type and rope["rope_type"] == "longrope":
            # Longer texts need other tables from their first token on. A graph has one.
            self.context_length = self.original_context_length = int(
                rope.get("original_max_position_embeddings")
                or config.original_max_position_embeddings
            )

    def make_context_length_init(self, config: Any) -> None:
        super().make_context_length_init(config)
        self.window_size = getattr(config, "sliding_window", None) or -1
        for rope in ropes(config):
            if rope["rope_type"] == "yarn":  # Qwen's max_position_embeddings does not include it
                length = int(rope["factor"] * rope["original_max_position_embeddings"])
                self.context_length = max(self.context_length, length)

    def is_fused_rope_supported(self) -> bool:
        return self.rotary_columns % FUSED_ROPE_COLUMNS == 0

    def is_packed_matmul_supported(self) -> bool:
        """Operators between projection and attention need queries, keys and values apart."""
        separate = self.is_fused_rope_supported() or self.qk_norm
        return bool(separate and super().is_packed_matmul_supported())

    def make_attention_init(self, config: Any) -> None:
        self.attention_attrs["q_norm"] = self.attention_attrs["k_norm"] = self.qk_norm
        super().make_attention_init(config)

    def rotates(self, layer_id: int) -> bool:
        """Whether a layer has rotary embeddings."""
        return True

    def make_attention_qk_rope(self, layer_id: int, **_: Any) -> tuple[str, str]:
        """Names of the tables for the attention operator; "" where it does not rotate."""
        if not self.rotates(layer_id):
            return "", ""
        tables = self.rotary_tables(layer_id)
        if self.attention_attrs["use_rope_in_attn"]:
            return tables
        for part, heads in (("q", self.num_attn_heads), ("k", self.num_kv_heads)):
            self.rotate(layer_id, part, heads, tables)
        return "", ""

    def rotary_tables(self, layer_id: int) -> tuple[str, str]:
        """Names of the cosines and sines of a layer, (tokens, half of the rotated columns)."""
        layer_type = self.layer_types[layer_id] if self.rope_by_type else ""
        names = f"cos_cache{layer_type}", f"sin_cache{layer_type}"
        if names[0] not in self.values:
            rotary = next(
                module
                for module in self.weights.modules()
                if type(module).__name__.endswith("RotaryEmbedding")
            )
            positions = torch.arange(self.context_length)[None]
            tables = rotary(torch.zeros(1), positions, *filter(None, [layer_type]))
            for name, table in zip(names, tables, strict=True):
                half = table[0, :, : table.shape[-1] // 2]
                self.make_initializer(half.contiguous(), name)
        return names

    def rotate(self, layer_id: int, part: str, heads: int, tables: tuple[str, str]) -> None:
        """Add an operator that rotates queries ("q") or keys ("k") before the attention."""
        name = f"/model/layers.{layer_id}/attn/{part}_rotary/RotaryEmbedding"
        path, output = self.attention_attrs[f"{part}_path"], f"{name}/output_0"
        self.make_node(
            "RotaryEmbedding", [path, self.input_names["position_ids"], *tables], [output],
            name=name, domain="com.microsoft", interleaved=self.rope_attrs["interleaved"],
            num_heads=heads, rotary_embedding_dim=self.rotary_columns,
        )  # fmt: skip
        self.make_value(output, self.io_dtype, self.values[path].shape)
        self.attention_attrs[f"{part}_path"] = output

    def get_attention_op_attributes(self, **kwargs: Any) -> dict[str, Any]:
        attributes: dict[str, Any] = super().get_attention_op_attributes(**kwargs)
        return attributes | {"do_rotary": bool(kwargs.get("cos_cache"))}

    def has_final_norm(self, module: Any, model: Any) -> bool:
        base = model.base_model
        return module is getattr(base, "norm", getattr(base, "final_layer_norm", None))

    def has_lm_head(self, module: Any) -> bool:
        return module is self.weights.get_output_embeddings()

    def is_layer(self, module: Any) -> bool:
        return any(module is layer for layer in self.weights.base_model.layers)

    def add_norm(self, layer_id: int, norm: Any, path: str, location: str) -> str:
        """Normalize `path` alone, without a residual sum; the name of the output."""
        before = self.layernorm_attrs["root_input"]
        self.layernorm_attrs["root_input"] = path
        simple = self.layernorm_attrs["simple"]
        self.make_layernorm(layer_id, norm, skip=False, simple=simple, location=location)
        self.layernorm_attrs["root_input"] = before
        return str(self.layernorm_attrs["output_0"])

    def add_sum(self, name: str, *paths: str) -> str:
        """Add hidden states; the name of the output."""
        self.make_add(name, list(paths), self.io_dtype, self.make_hidden_state_shape())
        return f"{name}/output_0"

    def end_layer(self, layer_id: int) -> None:
        """Tell the builder's norms that a layer is complete."""
        self.layernorm_attrs["first_layernorm"] = False
        self.layernorm_attrs["last_layernorm"] = layer_id == self.num_layers - 1
