"""Which graph a family has in ONNX: classes for onnxruntime-genai's model builder.

    build = builder_class(config)           # FormatError for what cannot be computed
    model = build(config, ir.DataType.FLOAT, ir.DataType.FLOAT, "cpu", cache, {})
    model.load_weights = lambda _: module   # transformers' own; its weights may be on meta
    model.make_model("")                    # model.model is the graph

The builder knows how ONNX Runtime computes a decoder but reads few of transformers' settings: a
rope or a sliding window that it does not know is left out silently. Here the angles are those of
transformers' own rotary embedding, and what no operator computes is refused.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any
from unittest import mock

from edgeft.errors import FormatError, did_you_mean, require

_KEPT = "--format gguf keeps it"
_NOT_HERE = {
    "DeepseekV2": "its latent attention and experts",
    "DeepseekV3": "its latent attention and experts",
    "ChatGLM": "a model that transformers has no class for",
}
"""family -> what of it has no graph"""
_ROPES = ("default", "linear", "llama3", "yarn")
_ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh")


def builder_class(config: Any) -> type:
    """The builder's class for a configuration of transformers, before any weight is looked at."""
    architecture = (config.architectures or [""])[0]
    family = architecture.partition("For")[0].removesuffix("Model")
    if family in _NOT_HERE:
        raise FormatError(f"ONNX cannot hold {architecture}: {_NOT_HERE[family]}", hint=_KEPT)
    require("onnxruntime_genai", "onnx")
    classes = _classes()
    if architecture not in classes:
        raise FormatError(f"no ONNX for {architecture!r}", hint=did_you_mean(architecture, classes))
    _check(config, architecture)
    return classes[architecture]


def _check(config: Any, architecture: str) -> None:
    """Refuse the settings that the builder or ONNX Runtime's operators know nothing of."""
    for rope in _ropes(config).values():
        kind = rope["rope_type"]
        if kind not in _ROPES and (kind, architecture) != ("longrope", "Phi3ForCausalLM"):
            raise FormatError(f"ONNX has no rope of type {kind!r} for {architecture}", hint=_KEPT)
    activation = _activation(config)
    if activation not in _ACTIVATIONS:
        raise FormatError(f"ONNX has no activation {activation!r} here", hint=_KEPT)
    if getattr(config, "use_bidirectional_attention", False):
        raise FormatError("a model whose tokens see later ones does not generate text")
    head = _head_size(config)
    if head % 8:
        raise FormatError(
            f"ONNX Runtime's attention takes heads of a multiple of 8, not of {head}", hint=_KEPT
        )


def _head_size(config: Any) -> int:
    head: int | None = getattr(config, "head_dim", None)
    return head or config.hidden_size // config.num_attention_heads


def _activation(config: Any) -> str:
    """Gemma 2 and 3 read `hidden_activation`; in other configurations it is a leftover."""
    found: str = getattr(config, "hidden_act", None) or config.hidden_activation
    return found


@functools.cache
def _classes() -> dict[str, type]:
    path = list(sys.path)
    from onnxruntime_genai.models.builders.base import Model

    sys.path[:] = path  # the import adds two folders of files with names such as models
    import torch
    import transformers

    class Exact(Model):  # type: ignore[misc]
        """A decoder like Llama's, whose settings are those that transformers goes by."""

        runtime = ""
        """what onnxruntime-genai calls the type of model, where it does not know the family"""

        def __init__(self, config: Any, *args: Any) -> None:
            super().__init__(config, *args)
            self.model_type = self.runtime or self.model_type
            if "multi_cache" in self.rope_attrs:
                self.make_rotary_embedding_multi_cache()

        def make_config_init(self, config: Any) -> None:
            """The builder's own would write into the configuration."""

        def make_context_length_init(self, config: Any) -> None:
            super().make_context_length_init(config)
            for rope in _ropes(config).values():
                if rope["rope_type"] == "yarn":  # Qwen's is beyond max_position_embeddings
                    length = int(rope["factor"] * rope["original_max_position_embeddings"])
                    self.context_length = max(self.context_length, length)
                elif rope["rope_type"] == "longrope":
                    self.original_context_length = rope["original_max_position_embeddings"]

        def make_rope_init(self, config: Any) -> None:
            """Angles from the family's own class; the builder's formulas have other defaults."""
            name = config.architectures[0]
            module = sys.modules[getattr(transformers, name).__module__]
            rotary = getattr(module, name.removesuffix("ForCausalLM") + "RotaryEmbedding")(config)
            self.ropes = {
                kind: (
                    getattr(rotary, f"{kind}_inv_freq".lstrip("_")),
                    getattr(rotary, f"{kind}_attention_scaling".lstrip("_")),
                )
                for kind in _ropes(config)
            }
            (frequencies, scale), *_ = self.ropes.values()
            dim = 2 * len(frequencies)
            if dim != self.head_size:
                self.rope_attrs["partial_rotary_factor"] = dim / self.head_size
                self.rope_attrs["rotary_embedding_dim"] = dim
            if config.rope_parameters.get("rope_type") == "longrope":
                long, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["longrope"](
                    config, seq_len=self.original_context_length + 1
                )
                self.rope_attrs["multi_cache"] = {
                    "short_factor": frequencies, "long_factor": long,
                    "short_mscale": scale, "long_mscale": scale,
                }  # fmt: skip

        def make_rotary_embedding_caches_from_scratch(self) -> tuple[Any, Any]:
            # Here, the builder's "rescale_factors" are the frequencies themselves.
            positions = torch.arange(self.rope_attrs["cache_length"], dtype=torch.float32)
            angles = torch.outer(positions, self.rope_attrs["rescale_factors"])
            return tuple(part * self.rope_attrs["mscale"] for part in (angles.cos(), angles.sin()))

        def make_rotary_embedding_caches(self, **names: str) -> Any:
            """The names of the tables of this layer, which are made when they are first needed."""
            if names or "multi_cache" in self.rope_attrs:
                return super().make_rotary_embedding_caches(**names)
            kind = self.layer_types[self.layer_id] if "" not in self.ropes else ""
            names = {f"{part}_cache_name": f"{part}_cache{kind}" for part in ("cos", "sin")}
            self.rope_attrs["rescale_factors"], self.rope_attrs["mscale"] = self.ropes[kind]
            self.rope_attrs["create_caches"] = names["cos_cache_name"] not in self.values
            return super().make_rotary_embedding_caches(**names)

        def is_fused_rope_supported(self) -> bool:
            # group_query_attention_helper.h: a table has a multiple of 8 columns
            (frequencies, _), *_ = self.ropes.values()
            return len(frequencies) % 8 == 0 and len(frequencies) <= self.head_size // 16 * 8

        def is_packed_matmul_supported(self) -> bool:
            # Packed, the builder's rope outside of the attention finds no keys.
            apart = self.is_fused_rope_supported() or self.attention_attrs["q_norm"]
            return bool(apart and super().is_packed_matmul_supported())

        def make_attention_init(self, config: Any) -> None:
            self.activation = _activation(config)
            self.layer_types = _layer_types(config)
            super().make_attention_init(config)

        def make_model(self, input_path: str) -> None:
            # The builder drops a bias of zeros, but these weights have no values yet.
            with mock.patch.object(torch, "count_nonzero", lambda _: 1):
                super().make_model(input_path)

        def make_attention_unpacked(self, layer_id: int, attention: Any, *_: Any, **__: Any) -> None:
            if hasattr(attention, "qkv_proj"):
                sizes = (self.q_size, self.kv_size, self.kv_size)
                parts = _split(attention.qkv_proj, sizes)
                attention.q_proj, attention.k_proj, attention.v_proj = parts

        def make_mlp_unpacked(self, layer_id: int, mlp: Any, root_input: str) -> None:
            if hasattr(mlp, "gate_up_proj"):
                sizes = (self.intermediate_size, self.intermediate_size)
                mlp.gate_proj, mlp.up_proj = _split(mlp.gate_up_proj, sizes)

        def has_lm_head(self, module: Any) -> bool:
            return module is self.weights.get_output_embeddings()

    class HeadNorms(Exact):
        """Qwen3: queries and keys are normalized head by head."""

        def make_attention_init(self, config: Any) -> None:
            self.attention_attrs |= {"q_norm": True, "k_norm": True}
            super().make_attention_init(config)

    class SmolLM3(Exact):
        """Every fourth layer has no rope."""

        def __init__(self, config: Any, *args: Any) -> None:
            super().__init__(config, *args)
            self.has_rope = config.no_rope_layers

        def make_attention(self, layer_id: int, *args: Any, **more: Any) -> None:
            before = dict(self.attention_attrs)
            if not self.has_rope[layer_id]:
                self.attention_attrs |= {"rope": False, "use_rope_in_attn": False}
            super().make_attention(layer_id, *args, **more)
            for name in ("rope", "use_rope_in_attn"):
                self.attention_attrs[name] = before[name]

    class Clipped(Exact):
        """Olmo and Olmoe: queries, keys and values are clipped before the rope."""

        def __init__(self, config: Any, *args: Any) -> None:
            super().__init__(config, *args)
            self.clip = config.clip_qkv

        def make_attention_qk_rope(self, layer_id: int, **more: Any) -> Any:
            for part in ("q", "k", "v") if self.clip is not None else ():
                if path := self.attention_attrs[f"{part}_path"]:  # packed, all are in q's
                    name = f"/model/layers.{layer_id}/attn/{part}_clip/Clip"
                    limits = [f"/model/constants/FLOAT/{limit}" for limit in (-self.clip, self.clip)]
                    shape = self.values[path].shape
                    self.make_clip(name, [path, *limits], dtype=self.io_dtype, shape=shape)
                    self.attention_attrs[f"{part}_path"] = f"{name}/output_0"
            return super().make_attention_qk_rope(layer_id, **more)

    class Olmo(Clipped):
        """LayerNorm without weights."""

        def __init__(self, config: Any, *args: Any) -> None:
            super().__init__(config, *args)
            self.layernorm_attrs |= {"simple": False, "epsilon": 1e-5}

        def make_layernorm(self, layer_id: int, layernorm: Any, *args: Any, **more: Any) -> None:
            ones = SimpleNamespace(
                weight=torch.ones(self.hidden_size), bias=torch.zeros(self.hidden_size)
            )
            super().make_layernorm(layer_id, ones, *args, **more)

    class WideNorms(HeadNorms):
        """Olmo 2, Olmo 3 and Olmoe: one norm over all heads of the queries, one of the keys."""

        def make_qk_norm(self, layer_id: int, attention: Any) -> None:
            for part in ("q", "k"):
                path = self.attention_attrs[f"{part}_path"]
                name = f"/model/layers.{layer_id}/attn/{part}_norm/SimplifiedLayerNormalization"
                weight = f"model.layers.{layer_id}.attn.{part}_norm.layernorm.weight"
                norm = getattr(attention, f"{part}_norm")
                self.make_initializer(norm.weight, weight, to=self.io_dtype)
                found = f"{name}/output_0"
                self.make_node(
                    "SimplifiedLayerNormalization", [path, weight], [found], name=name,
                    axis=-1, stash_type=1, epsilon=self.layernorm_attrs["epsilon"],
                )  # fmt: skip
                self.make_value(found, self.io_dtype, self.values[path].shape)
                self.attention_attrs[f"{part}_path"] = found

    class Experts(Exact):
        """Mixtures of experts: a router, and the experts' matrices in one operator."""

        def __init__(self, config: Any, *args: Any) -> None:
            super().__init__(config, *args)
            # Mixtral always makes the chosen experts' weights sum to one; others say whether.
            normalized = getattr(config, "norm_topk_prob", True)
            self.moe_attrs |= {
                "activation_type": "swiglu", "swiglu_fusion": 1,
                "normalize_routing_weights": normalized,
            }  # fmt: skip

        def get_moe_module(self, layer_id: int, layer: Any) -> Any:
            return layer.mlp

        def make_moe(self, layer_id: int, moe: Any, root_input: str) -> None:
            if not hasattr(moe, "experts"):  # Qwen's mlp_only_layers
                self.make_mlp(layer_id, moe, root_input)
                return
            base, count = f"/model/layers.{layer_id}/moe", self.moe_attrs["num_experts"]
            router = self.make_matmul(moe.gate, f"{base}/router/MatMul", root_input)
            self.make_reshape(
                f"{base}/router/Reshape",
                [f"{router}/output_0", f"/model/constants/INT64/[-1, {count}]"],
                dtype=self.io_dtype, shape=self.make_moe_router_shape(),
            )  # fmt: skip
            names = self.make_moe_expert_names(layer_id)
            gate, up = moe.experts.gate_up_proj.chunk(2, dim=1)
            rows = torch.stack([gate, up], dim=2).flatten(1, 2)  # gate and up in turns
            self.make_initializer(rows, names["gate_up_weight"], to=self.io_dtype)
            down = moe.experts.down_proj
            self.make_initializer(down, names["down_weight"], to=self.io_dtype)
            self.make_base_moe_op(
                f"{base}/MoE", root_input=root_input,
                router_probs=f"{base}/router/Reshape/output_0",
                weight1=names["gate_up_weight"], weight2=names["down_weight"],
            )  # fmt: skip
            self.layernorm_attrs["skip_input"] = f"{base}/MoE/output_0"

        def make_mlp(self, layer_id: int, mlp: Any, root_input: str) -> None:
            self.intermediate_size = mlp.down_proj.weight.shape[1]  # not that of an expert
            super().make_mlp(layer_id, mlp, root_input)

    class SharedExpert(Experts):
        """Qwen2's mixtures: an expert beside the others that every token goes through, gated."""

        def make_moe(self, layer_id: int, moe: Any, root_input: str) -> None:
            super().make_moe(layer_id, moe, root_input)
            if not hasattr(moe, "shared_expert"):
                return
            chosen = self.layernorm_attrs["skip_input"]
            base, shape = f"/model/layers.{layer_id}/shared", self.make_hidden_state_shape()
            gate = self.make_matmul(moe.shared_expert_gate, f"{base}/gate/MatMul", root_input)
            self.make_sigmoid(
                f"{base}/gate/Sigmoid", f"{gate}/output_0", dtype=self.io_dtype,
                shape=self.make_hidden_state_shape(last_dim=1),
            )  # fmt: skip
            self.make_mlp(layer_id, moe.shared_expert, root_input)
            parts = [self.layernorm_attrs["skip_input"], f"{base}/gate/Sigmoid/output_0"]
            self.make_mul(f"{base}/Mul", parts, dtype=self.io_dtype, shape=shape)
            parts = [chosen, f"{base}/Mul/output_0"]
            self.make_add(f"{base}/Add", parts, dtype=self.io_dtype, shape=shape)
            self.layernorm_attrs["skip_input"] = f"{base}/Add/output_0"

    class Qwen3Experts(Experts, HeadNorms):
        """Qwen3 with experts."""

        runtime = "decoder"

    class Olmoe(Experts, WideNorms, Clipped):
        """Llama's layers with Olmo 2's norms, Olmo's clipping, and experts."""

        runtime = "decoder"

    class Normed(Exact):
        """Norms before or after attention and MLP, and residuals as plain sums."""

        norms: tuple[str, str, str, str]
        """before and after the attention, before and after the MLP"""
        parallel = False
        """the MLP, too, reads what the layer reads"""

        def make_layer(self, layer_id: int, layer: Any) -> None:
            first, second, third, fourth = self.norms
            stream = self.layernorm_attrs["root_input"]
            attention = self.get_attn_module(layer_id, layer)
            self.make_attention(layer_id, attention, self.normed(layer, first, stream))
            found = self.normed(layer, second, self.layernorm_attrs["skip_input"])
            between = self.sum("attention", stream, found)
            self.make_mlp(
                layer_id, layer.mlp, self.normed(layer, third, stream if self.parallel else between)
            )
            found = self.normed(layer, fourth, self.layernorm_attrs["skip_input"])
            self.layernorm_attrs["root_input"] = self.sum("mlp", between, found)

        def normed(self, layer: Any, norm: str, value: str) -> str:
            if not norm:
                return value
            stream = self.layernorm_attrs["root_input"]
            self.layernorm_attrs["root_input"] = value
            simple = self.layernorm_attrs["simple"]
            self.make_layernorm(self.layer_id, getattr(layer, norm), False, simple, norm)
            self.layernorm_attrs["root_input"] = stream
            return str(self.layernorm_attrs["output_0"])

        def sum(self, part: str, *values: str) -> str:
            name = f"/model/layers.{self.layer_id}/{part}_residual/Add"
            self.make_add(name, values, dtype=self.io_dtype, shape=self.make_hidden_state_shape())
            return f"{name}/output_0"

        def make_layernorm(
            self, layer_id: int, layernorm: Any, skip: bool, simple: bool, location: str
        ) -> None:
            super().make_layernorm(layer_id, layernorm, False, simple, location)

    class Gemma(Exact):
        """Weights of norms are stored less one, and embeddings are scaled."""

        def __init__(self, config: Any, *args: Any) -> None:
            super().__init__(config, *args)
            self.embed_attrs["scale"] = config.hidden_size**0.5
            self.layernorm_attrs["add_offset"] = 1

    class Gemma2(Gemma, Normed):
        """Gemma between norms, with a scale of its own in the attention."""

        norms = ("input_layernorm", "post_attention_layernorm",
                 "pre_feedforward_layernorm", "post_feedforward_layernorm")  # fmt: skip

        def __init__(self, config: Any, *args: Any) -> None:
            super().__init__(config, *args)
            self.attention_attrs["scale"] = config.query_pre_attn_scalar**-0.5

    class Gemma3(Gemma2, HeadNorms):
        """Gemma 2 with norms of queries and keys."""

        runtime = "gemma3_text"

    class Olmo2(Normed, WideNorms):
        """Norms only after attention and MLP."""

        norms = ("", "post_attention_layernorm", "", "post_feedforward_layernorm")
        runtime = "decoder"

    class Glm(Exact):
        """Pairs of the rope are neighbours."""

        runtime = "decoder"

        def make_rope_init(self, config: Any) -> None:
            super().make_rope_init(config)
            self.rope_attrs["interleaved"] = 1

    class Glm4(Glm, Normed):
        """Glm between norms."""

        norms = ("input_layernorm", "post_self_attn_layernorm",
                 "post_attention_layernorm", "post_mlp_layernorm")  # fmt: skip

    class GPTNeoX(Normed):
        """LayerNorm, one matrix for queries, keys and values, and an MLP of two."""

        norms = ("input_layernorm", "", "post_attention_layernorm", "")
        runtime = "decoder"

        def __init__(self, config: Any, *args: Any) -> None:
            super().__init__(config, *args)
            self.layernorm_attrs |= {"simple": False, "epsilon": config.layer_norm_eps}
            self.mlp_attrs |= {"use_proj": False, "use_fc": True}
            self.parallel = config.use_parallel_residual

        def get_attn_module(self, layer_id: int, layer: Any) -> Any:
            return layer.attention

        def make_attention_unpacked(self, layer_id: int, attention: Any, *_: Any, **__: Any) -> None:
            """Rows are by head, and in each those of query, key and value."""
            fused, parts = attention.query_key_value, []
            for part in range(3):
                weight, bias = (
                    None if values is None else
                    values.reshape(self.num_attn_heads, 3, self.head_size, *values.shape[1:])
                    [:, part].reshape(self.q_size, *values.shape[1:])
                    for values in (fused.weight, fused.bias)
                )  # fmt: skip
                parts.append(SimpleNamespace(weight=weight, bias=bias))
            attention.q_proj, attention.k_proj, attention.v_proj = parts

        def make_mlp_unpacked(self, layer_id: int, mlp: Any, root_input: str) -> None:
            mlp.fc1, mlp.fc2 = mlp.dense_h_to_4h, mlp.dense_4h_to_h

        def is_layer(self, module: Any) -> bool:
            return type(module).__name__ == "GPTNeoXLayer"

        def has_final_norm(self, module: Any, model: Any) -> bool:
            return module is model.gpt_neox.final_layer_norm

    families = {
        "Llama": Exact, "Mistral": Exact, "Qwen2": Exact, "Qwen3": HeadNorms, "Phi3": Exact,
        "SmolLM3": SmolLM3, "Gemma": Gemma, "Gemma2": Gemma2, "Gemma3": Gemma3,
        "Olmo": Olmo, "Olmo2": Olmo2, "Olmo3": Olmo2, "Olmoe": Olmoe, "Glm": Glm, "Glm4": Glm4,
        "GPTNeoX": GPTNeoX, "Mixtral": Experts, "Qwen2Moe": SharedExpert,
        "Qwen3Moe": Qwen3Experts,
    }  # fmt: skip
    return {f"{family}ForCausalLM": found for family, found in families.items()}


def _ropes(config: Any) -> dict[str, Any]:
    """Type of layer -> settings of its rope; "" for all of them."""
    ropes = config.rope_parameters
    if "rope_type" in ropes:
        return {"": ropes}
    return {kind: ropes[kind] for kind in sorted(set(config.layer_types)) if ropes[kind]}


def _layer_types(config: Any) -> list[str]:
    """By the settings that a family declares; others in config.json do nothing."""
    declared = {field.name for field in dataclasses.fields(config)}
    if "layer_types" in declared:
        return list(config.layer_types)
    slides = "sliding_window" in declared and config.sliding_window
    return ["sliding_attention" if slides else "full_attention"] * config.num_hidden_layers


def _split(linear: Any, sizes: tuple[int, ...]) -> list[SimpleNamespace]:
    """Rows of a fused layer, as layers."""
    weights = linear.weight.split(sizes)
    biases = [None] * len(sizes) if linear.bias is None else linear.bias.split(sizes)
    return [
        SimpleNamespace(weight=weight, bias=bias)
        for weight, bias in zip(weights, biases, strict=True)
    ]
