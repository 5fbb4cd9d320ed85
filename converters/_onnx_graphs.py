"""Graphs of decoders in ONNX: subclasses of onnxruntime-genai's model builder.

    build = graphs()["Olmo2ForCausalLM"]    # `_onnx_families.builder_class` checks, too

The builder knows how ONNX Runtime computes a decoder, but reads few of transformers' settings: a
rope or a sliding window that it does not know is left out without a word. Here the angles are
those of transformers' own rotary embedding, and windows and activations are what it goes by. What
else a family has is in its class, as in transformers 5.23's models/<family>/modeling_<family>.py.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import sys
from types import SimpleNamespace
from typing import Any


def activation(config: Any) -> str:
    """Gemma 2 and 3 declare `hidden_activation`; elsewhere it is a leftover in config.json."""
    name = "hidden_act" if "hidden_act" in _declared(config) else "hidden_activation"
    return str(getattr(config, name))


def layer_types(config: Any) -> list[str]:
    """By the settings that a family declares; a leftover does nothing in transformers, either."""
    declared = _declared(config)
    if "layer_types" in declared:
        return list(config.layer_types)
    slides = "sliding_window" in declared and config.sliding_window
    return ["sliding_attention" if slides else "full_attention"] * config.num_hidden_layers


def ropes(config: Any) -> dict[str, Any]:
    """Type of layer -> settings of its rope; "" if all layers have the same."""
    found = config.rope_parameters
    if "rope_type" in found:
        return {"": found}
    return {kind: found[kind] for kind in sorted(set(config.layer_types))}


def _declared(config: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(config)}


@functools.cache
def graphs() -> dict[str, type]:
    path = list(sys.path)
    from onnxruntime_genai.models.builders.base import Model

    sys.path[:] = path  # the import adds two folders of files with names such as models
    import torch
    import transformers

    class Exact(Model):  # type: ignore[misc]
        """A decoder like Llama's, whose settings are those that transformers goes by."""

        runtime = ""
        """what onnxruntime-genai calls the type of model, where it does not know the family"""

        model_type: str
        context_length: int

        def __init__(self, config: Any, *args: Any) -> None:
            super().__init__(config, *args)
            self.model_type = self.runtime or self.model_type
            if "multi_cache" in self.rope_attrs:
                self.make_rotary_embedding_multi_cache()

        def make_config_init(self, config: Any) -> None:
            """The builder's own would write into the configuration."""

        def make_context_length_init(self, config: Any) -> None:
            super().make_context_length_init(config)
            # Of a cache that slides with its window, onnxruntime-genai cannot take tokens back.
            self.context_length_attrs["window_kv_cache"] = False
            for rope in ropes(config).values():
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
                for kind in ropes(config)
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
            # group_query_attention_helper.h: its tables have a multiple of 8 columns
            (frequencies, _), *_ = self.ropes.values()
            return len(frequencies) % 8 == 0

        def is_packed_matmul_supported(self) -> bool:
            # Packed, the builder's rope outside of the attention finds no keys.
            apart = self.is_fused_rope_supported() or self.attention_attrs["q_norm"]
            return bool(apart and super().is_packed_matmul_supported())

        def make_attention_init(self, config: Any) -> None:
            self.activation = activation(config)
            self.layer_types = layer_types(config)
            super().make_attention_init(config)

        def make_model(self, input_path: str) -> None:
            # The builder leaves out a bias of zeros, but these weights may have no values yet.
            count, torch.count_nonzero = torch.count_nonzero, lambda _: 1
            try:
                super().make_model(input_path)
            finally:
                torch.count_nonzero = count

        def make_attention_unpacked(
            self, layer_id: int, attention: Any, *_: Any, **__: Any
        ) -> None:
            if hasattr(attention, "qkv_proj"):
                ends = (0, self.q_size, self.q_size + self.kv_size, self.q_size + 2 * self.kv_size)
                parts = [_part(attention.qkv_proj, slice(*end)) for end in itertools.pairwise(ends)]
                attention.q_proj, attention.k_proj, attention.v_proj = parts

        def make_mlp_unpacked(self, layer_id: int, mlp: Any, root_input: str) -> None:
            if hasattr(mlp, "gate_up_proj"):
                half = self.intermediate_size
                mlp.gate_proj = _part(mlp.gate_up_proj, slice(half))
                mlp.up_proj = _part(mlp.gate_up_proj, slice(half, None))

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
            has, fused = bool(self.has_rope[layer_id]), self.attention_attrs["use_rope_in_attn"]
            self.attention_attrs |= {"rope": has, "use_rope_in_attn": has and fused}
            super().make_attention(layer_id, *args, **more)
            self.attention_attrs["use_rope_in_attn"] = fused

    class Clipped(Exact):
        """Olmo and Olmoe: queries, keys and values are clipped before the rope."""

        def __init__(self, config: Any, *args: Any) -> None:
            super().__init__(config, *args)
            self.clip = config.clip_qkv

        def make_attention_qk_rope(self, layer_id: int, **more: Any) -> Any:
            for part in ("q", "k", "v") if self.clip is not None else ():
                if path := self.attention_attrs[f"{part}_path"]:  # packed, all are in q's
                    name = f"/model/layers.{layer_id}/attn/{part}_clip/Clip"
                    limits = [
                        f"/model/constants/FLOAT/{limit}" for limit in (-self.clip, self.clip)
                    ]
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

        runtime = "decoder"

        def __init__(self, config: Any, *args: Any) -> None:
            super().__init__(config, *args)
            # On a CPU, QMoE makes the chosen weights sum to one whether it is to or not.
            self.moe_attrs |= {
                "activation_type": "swiglu", "swiglu_fusion": 1, "normalize_routing_weights": 1,
            }  # fmt: skip
            self.normalizes = getattr(config, "norm_topk_prob", True)  # Mixtral always does

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
            fused = moe.experts.gate_up_proj
            rows = torch.arange(fused.shape[1]).reshape(2, -1).T.flatten()  # gate, up, gate, up, …
            self.make_initializer(fused[:, rows], names["gate_up_weight"], to=self.io_dtype)
            down = moe.experts.down_proj
            self.make_initializer(down, names["down_weight"], to=self.io_dtype)
            self.make_base_moe_op(
                f"{base}/MoE", root_input=root_input,
                router_probs=f"{base}/router/Reshape/output_0",
                weight1=names["gate_up_weight"], weight2=names["down_weight"],
            )  # fmt: skip
            found = f"{base}/MoE/output_0"
            if not self.normalizes:
                total = self.chosen_share(f"{base}/router", f"{router}/output_0")
                name, shape = f"{base}/Mul", self.make_hidden_state_shape()
                self.make_mul(name, [found, total], dtype=self.io_dtype, shape=shape)
                found = f"{name}/output_0"
            self.layernorm_attrs["skip_input"] = found

        def chosen_share(self, base: str, logits: str) -> str:
            """What the probabilities of the chosen experts sum to."""
            count, chosen = self.moe_attrs["num_experts"], self.moe_attrs["top_k"]
            kind = self.io_dtype
            all_, top, one = (self.make_hidden_state_shape(last_dim=n) for n in (count, chosen, 1))
            self.make_softmax(f"{base}/Softmax", logits, dtype=kind, shape=all_)
            inputs = [f"{base}/Softmax/output_0", f"/model/constants/INT64/[{chosen}]"]
            self.make_topk(f"{base}/TopK", inputs, dtype=kind, shape=top)
            inputs = [f"{base}/TopK/output_0", "/model/constants/INT64/[-1]"]
            self.make_reduce_sum(f"{base}/Sum", inputs, dtype=kind, shape=one, keepdims=True)
            return f"{base}/Sum/output_0"

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

    class Olmoe(Experts, WideNorms, Clipped):
        """Llama's layers with Olmo 2's norms, Olmo's clipping, and experts."""

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

        def make_attention_unpacked(
            self, layer_id: int, attention: Any, *_: Any, **__: Any
        ) -> None:
            """Rows are by head, and in each those of query, key and value."""
            rows = torch.arange(3 * self.q_size).reshape(self.num_attn_heads, 3, self.head_size)
            parts = [_part(attention.query_key_value, rows[:, i].flatten()) for i in range(3)]
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


def _part(linear: Any, rows: Any) -> SimpleNamespace:
    """Some rows of a fused layer, as a layer."""
    bias = None if linear.bias is None else linear.bias[rows]
    return SimpleNamespace(weight=linear.weight[rows], bias=bias)
