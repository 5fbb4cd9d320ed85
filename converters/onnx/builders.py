"""The model builder's classes as they are needed to give transformers' logits, and some it lacks.

    builder = builder_class(config)         # FormatError for what cannot be computed

onnxruntime-genai's builder knows many architectures by name, but leaves out of some what their
config.json may say. So in all of them rotary embeddings are tables that transformers' own module
computed, whatever their kind, and sliding windows are those that it would use.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from edgeft.errors import FormatError

PLAIN = "llama"
"""onnxruntime-genai's name for a decoder without peculiarities"""
HEAD = 8
"""a head's size has to be a multiple of it, for onnxruntime's attention"""
TURNED = 16
"""a multiple of columns that the attention rotates by itself; others are rotated before it"""
ROPES = ("default", "linear", "llama3", "yarn", "longrope")
"""kinds whose angles are the same however long the text is, or are kept to a length"""
ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh")


def builder_class(config: Any) -> Any:
    """The builder's class for transformers' configuration of a model."""
    name = (config.architectures or ["(none named)"])[0]
    found = _classes().get(name)
    hint = "--format gguf can hold it"
    if found is None:
        raise FormatError(f"onnxruntime-genai's builder has no {name}", hint)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if size % HEAD:
        raise FormatError(f"onnxruntime's attention has no heads of {size} columns", hint)
    for rope in ropes(config):
        if rope["rope_type"] not in ROPES:
            raise FormatError(f"a graph has no rope of the type {rope['rope_type']!r}", hint)
    mixture = any(hasattr(config, count) for count in ("num_experts", "num_local_experts"))
    act = activation(config)
    if act not in (("silu",) if mixture else ACTIVATIONS):
        raise FormatError(f"onnxruntime does not compute {act!r} in a {name}", hint)
    if getattr(config, "use_bidirectional_attention", False):
        raise FormatError(f"onnxruntime's attention does not look ahead, as this {name} does", hint)
    return found


def ropes(config: Any) -> list[dict[str, Any]]:
    """Settings of the rope: one for all layers, or one for each type of layer."""
    found = config.rope_parameters
    return [found] if "rope_type" in found else [found[kind] for kind in set(config.layer_types)]


def activation(config: Any) -> str:
    """Gemma 2 and 3 have another name for it, which means nothing in other families."""
    name = "hidden_act" if "hidden_act" in _declared(config) else "hidden_activation"
    return str(getattr(config, name))


def layer_types(config: Any) -> list[str]:
    """By the settings that transformers' class declares; others may be left over from training."""
    declared = _declared(config)
    if "layer_types" in declared:
        return list(config.layer_types)
    slides = "sliding_window" in declared and config.sliding_window
    return ["sliding_attention" if slides else "full_attention"] * config.num_hidden_layers


def _declared(config: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(config)}


@contextlib.contextmanager
def _clean_path() -> Iterator[None]:
    """The builder puts its own folder on the path, where `quantization` and others would shadow."""
    before = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = before


@functools.cache
def _classes() -> dict[str, Any]:
    """Architecture -> class. They can only be made where the builder is installed."""
    import torch

    with _clean_path():
        import onnxruntime_genai.models  # noqa: F401 - makes the builders importable
        from onnxruntime_genai.models import builders

    class Exact(builders.Model):  # type: ignore[misc]
        """What all have in common."""

        model_type: Any
        intermediate_size: Any

        def __init__(self, config: Any, *how: Any) -> None:
            super().__init__(config, *how)
            epsilon = getattr(config, "rms_norm_eps", None) or getattr(
                config, "layer_norm_eps", self.layernorm_attrs["epsilon"]
            )
            self.layernorm_attrs["epsilon"] = epsilon
            self.layer_types = layer_types(config)
            self.activation = activation(config)
            self.model_type = self.runs_as or self.model_type

        runs_as = ""
        """a type that onnxruntime-genai runs, where it has no such one"""

        def make_config_init(self, config: Any) -> None:
            """The builder would read rotary settings as if they were the model's."""

        def make_rope_init(self, config: Any) -> None:
            """Its tables come from transformers."""
            rope = config.rope_parameters
            self.by_type = "rope_type" not in rope
            share = ropes(config)[0].get("partial_rotary_factor", 1.0)
            self.turned = int(self.head_size * share)
            if not self.by_type and rope["rope_type"] == "longrope":
                # Longer texts have other tables from their first token on, which a graph has not.
                self.context_length = self.original_context_length = int(
                    rope.get("original_max_position_embeddings")
                    or config.original_max_position_embeddings
                )

        def make_context_length_init(self, config: Any) -> None:
            super().make_context_length_init(config)
            self.window_size = getattr(config, "sliding_window", None) or -1
            for rope in ropes(config):
                if rope["rope_type"] == "yarn":  # Qwen's max_position_embeddings is without it
                    length = int(rope["factor"] * rope["original_max_position_embeddings"])
                    self.context_length = max(self.context_length, length)

        def is_fused_rope_supported(self) -> bool:
            return self.turned % TURNED == 0

        def is_packed_matmul_supported(self) -> bool:
            """What is rotated before the attention has to lie apart; norms see to that, too."""
            apart = self.is_fused_rope_supported() or self.qk_norm
            return bool(apart and super().is_packed_matmul_supported())

        def make_attention_init(self, config: Any) -> None:
            self.attention_attrs["q_norm"] = self.attention_attrs["k_norm"] = self.qk_norm
            super().make_attention_init(config)

        qk_norm = False

        def rotates(self, layer_id: int) -> bool:
            return True

        def make_attention_qk_rope(self, layer_id: int, **_: Any) -> tuple[str, str]:
            if not self.rotates(layer_id):
                return "", ""
            kind = self.layer_types[layer_id] if self.by_type else ""
            names = f"cos_cache{kind}", f"sin_cache{kind}"
            if names[0] not in self.values:
                rotary = next(
                    module for module in self.weights.modules()
                    if type(module).__name__.endswith("RotaryEmbedding")
                )  # fmt: skip
                positions = torch.arange(self.context_length)[None]
                tables = rotary(torch.zeros(1), positions, *filter(None, [kind]))
                for name, table in zip(names, tables, strict=True):
                    half = table[0, :, : table.shape[-1] // 2]
                    self.make_initializer(half.contiguous(), name)
            if self.attention_attrs["use_rope_in_attn"]:
                return names
            for part, heads in (("q", self.num_attn_heads), ("k", self.num_kv_heads)):
                name = f"/model/layers.{layer_id}/attn/{part}_rotary/RotaryEmbedding"
                path, output = self.attention_attrs[f"{part}_path"], f"{name}/output_0"
                self.make_node(
                    "RotaryEmbedding", [path, self.input_names["position_ids"], *names], [output],
                    name=name, domain="com.microsoft", interleaved=self.rope_attrs["interleaved"],
                    num_heads=heads, rotary_embedding_dim=self.turned,
                )  # fmt: skip
                self.make_value(output, self.io_dtype, self.values[path].shape)
                self.attention_attrs[f"{part}_path"] = output
            return "", ""

        def get_attention_op_attributes(self, **named: Any) -> dict[str, Any]:
            found: dict[str, Any] = super().get_attention_op_attributes(**named)
            return found | {"do_rotary": bool(named.get("cos_cache"))}

        def has_final_norm(self, module: Any, model: Any) -> bool:
            base = model.base_model
            return module is getattr(base, "norm", getattr(base, "final_layer_norm", None))

        def has_lm_head(self, module: Any) -> bool:
            return module is self.weights.get_output_embeddings()

        def is_layer(self, module: Any) -> bool:
            return any(module is layer for layer in self.weights.base_model.layers)

        def normed(self, layer_id: int, norm: Any, path: str, location: str) -> str:
            """A norm of one input, which is no part of the residual stream's bookkeeping."""
            before = self.layernorm_attrs["root_input"]
            self.layernorm_attrs["root_input"] = path
            simple = self.layernorm_attrs["simple"]
            self.make_layernorm(layer_id, norm, skip=False, simple=simple, location=location)
            self.layernorm_attrs["root_input"] = before
            return str(self.layernorm_attrs["output_0"])

        def added(self, name: str, *paths: str) -> str:
            self.make_add(name, list(paths), self.io_dtype, self.make_hidden_state_shape())
            return f"{name}/output_0"

        def layer_done(self, layer_id: int) -> None:
            self.layernorm_attrs["first_layernorm"] = False
            self.layernorm_attrs["last_layernorm"] = layer_id == self.num_layers - 1

    class Qwen3(Exact):
        qk_norm = True

    class Gemma(Exact):
        def __init__(self, config: Any, *how: Any) -> None:
            super().__init__(config, *how)
            self.embed_attrs["scale"] = float(config.hidden_size**0.5)
            self.layernorm_attrs["add_offset"] = 1

    class Gemma2(Gemma, builders.Gemma2Model):  # type: ignore[misc]
        """Norms before and after attention and feed-forward."""

    class Gemma3(Gemma2):
        qk_norm, runs_as = True, "gemma3_text"

    class Clipped(Exact):
        """Queries, keys and values may be clipped before they are rotated."""

        def __init__(self, config: Any, *how: Any) -> None:
            super().__init__(config, *how)
            self.clip = config.clip_qkv

        def make_attention_qk_rope(self, layer_id: int, **named: Any) -> tuple[str, str]:
            for key in ("q_path", "k_path", "v_path") if self.clip is not None else ():
                path = self.attention_attrs[key]
                if path:
                    name = f"/model/layers.{layer_id}/attn/{key}/Clip"
                    bounds = [f"/model/constants/FLOAT/{float(bound)}"
                              for bound in (-self.clip, self.clip)]  # fmt: skip
                    shape = self.values[path].shape
                    self.make_clip(name, [path, *bounds], self.io_dtype, shape)
                    self.attention_attrs[key] = f"{name}/output_0"
            return super().make_attention_qk_rope(layer_id, **named)

    class Olmo(Clipped):
        """Norms without weights."""

        def __init__(self, config: Any, *how: Any) -> None:
            super().__init__(config, *how)
            self.layernorm_attrs |= {"simple": False, "epsilon": 1e-5}

        def make_layernorm(self, layer_id: int, layernorm: Any, **how: Any) -> None:
            size = self.hidden_size
            plain = SimpleNamespace(weight=torch.ones(size), bias=torch.zeros(size))
            super().make_layernorm(layer_id, plain, **how)

    class FullWidth(Exact):
        """Queries and keys are normed before they are cut into heads."""

        qk_norm, runs_as = True, PLAIN

        def make_qk_norm(self, layer_id: int, attention: Any) -> None:
            for key, norm in (("q", attention.q_norm), ("k", attention.k_norm)):
                name = f"/model/layers.{layer_id}/attn/{key}_norm/SimplifiedLayerNormalization"
                weight = f"model.layers.{layer_id}.attn.{key}_norm.weight"
                self.make_initializer(norm.weight, weight)
                path, output = self.attention_attrs[f"{key}_path"], f"{name}/output_0"
                self.make_node(
                    "SimplifiedLayerNormalization", [path, weight], [output], name=name, axis=-1,
                    epsilon=self.layernorm_attrs["epsilon"], stash_type=1,
                )  # fmt: skip
                shape = self.make_hidden_state_shape(last_dim=norm.weight.shape[0])
                self.make_value(output, self.io_dtype, shape)
                self.attention_attrs[f"{key}_path"] = output

    class Olmo2(FullWidth):
        """Norms after attention and feed-forward only."""

        def make_layer(self, layer_id: int, layer: Any) -> None:
            sums = self.layernorm_attrs
            path = sums["root_input"]
            if not sums["first_layernorm"]:
                name = f"/model/layers.{layer_id}/input/Add"
                path = self.added(name, path, sums["skip_input"])
            self.make_attention(layer_id, layer.self_attn, root_input=path)
            norm = layer.post_attention_layernorm
            after = self.normed(layer_id, norm, sums["skip_input"], "post_attention")
            path = self.added(f"/model/layers.{layer_id}/post_attention/Add", path, after)
            self.make_mlp(layer_id, layer.mlp, root_input=path)
            norm = layer.post_feedforward_layernorm
            sums["skip_input"] = self.normed(layer_id, norm, sums["skip_input"], "post_feedforward")
            sums["root_input"] = path
            self.layer_done(layer_id)

    class NeoX(Exact):
        """Queries, keys and values of a head lie together; attention and feed-forward may read the
        same state."""

        runs_as = PLAIN

        def __init__(self, config: Any, *how: Any) -> None:
            super().__init__(config, *how)
            self.layernorm_attrs["simple"] = False
            self.parallel = config.use_parallel_residual

        def make_attention_unpacked(
            self, layer_id: int, attention: Any, *_: Any, **__: Any
        ) -> None:
            packed = attention.query_key_value
            shape = (self.num_attn_heads, 3, self.head_size)
            weight = packed.weight.view(*shape, self.hidden_size)
            bias = None if packed.bias is None else packed.bias.view(*shape)
            for i, name in enumerate(("q_proj", "k_proj", "v_proj")):
                own = None if bias is None else bias[:, i].reshape(-1)
                rows = weight[:, i].reshape(-1, self.hidden_size)
                setattr(attention, name, SimpleNamespace(weight=rows, bias=own))

        def make_mlp(self, layer_id: int, mlp: Any, root_input: str) -> None:
            both = SimpleNamespace(fc1=mlp.dense_h_to_4h, fc2=mlp.dense_4h_to_h)
            self.make_mlp_fc(layer_id, both, root_input)
            self.layernorm_attrs["skip_input"] = self.mlp_attrs["output_0"]

        def make_layer(self, layer_id: int, layer: Any) -> None:
            layer.self_attn = layer.attention
            if not self.parallel:
                super().make_layer(layer_id, layer)
                return
            sums = self.layernorm_attrs
            skip = not sums["first_layernorm"]
            self.make_layernorm(
                layer_id, layer.input_layernorm, skip=skip, simple=False, location="input"
            )
            state = sums["root_input"]
            self.make_attention(layer_id, layer.attention, root_input=sums["output_0"])
            attended = sums["skip_input"]
            norm = layer.post_attention_layernorm
            path = self.normed(layer_id, norm, state, "post_attention")
            self.make_mlp(layer_id, layer.mlp, root_input=path)
            name = f"/model/layers.{layer_id}/parallel/Add"
            sums["skip_input"] = self.added(name, attended, sums["skip_input"])
            self.layer_done(layer_id)

    class Glm(Exact):
        runs_as = PLAIN

        def __init__(self, config: Any, *how: Any) -> None:
            super().__init__(config, *how)
            self.rope_attrs["interleaved"] = 1

    class Glm4(Glm, builders.Gemma2Model):  # type: ignore[misc]
        """Norms before and after attention and feed-forward, as Gemma 2 has them."""

        def __init__(self, config: Any, *how: Any) -> None:
            config.query_pre_attn_scalar = config.head_dim
            super().__init__(config, *how)
            self.embed_attrs["scale"] = 1
            self.layernorm_attrs["add_offset"] = 0

        def make_layer(self, layer_id: int, layer: Any) -> None:
            as_gemma = SimpleNamespace(
                input_layernorm=layer.input_layernorm, self_attn=layer.self_attn, mlp=layer.mlp,
                post_attention_layernorm=layer.post_self_attn_layernorm,
                pre_feedforward_layernorm=layer.post_attention_layernorm,
                post_feedforward_layernorm=layer.post_mlp_layernorm,
            )  # fmt: skip
            super().make_layer(layer_id, as_gemma)

    class SmolLM3(Exact):
        """Every fourth layer does not rotate."""

        def __init__(self, config: Any, *how: Any) -> None:
            super().__init__(config, *how)
            self.rotating = config.no_rope_layers

        def rotates(self, layer_id: int) -> bool:
            return bool(self.rotating[layer_id])

    class Mixture(Exact):
        """Experts in one operator, which wants the rows of gate and up to alternate."""

        runs_as = PLAIN

        def __init__(self, config: Any, *how: Any) -> None:
            super().__init__(config, *how)
            self.normalized = bool(getattr(config, "norm_topk_prob", True))

        def get_moe_module(self, layer_id: int, layer: Any) -> Any:
            return layer.mlp

        def make_moe(self, layer_id: int, moe: Any, root_input: str) -> None:
            if not hasattr(moe, "experts"):
                self.make_mlp(layer_id, moe, root_input)
                return
            base = f"/model/layers.{layer_id}/moe"
            names = self.make_moe_expert_names(layer_id)
            gate_up = moe.experts.gate_up_proj
            half = gate_up.shape[1] // 2
            pairs = torch.stack([gate_up[:, :half], gate_up[:, half:]], dim=2)
            weights = [names["gate_up_weight"], names["down_weight"]]
            self.make_initializer(pairs.reshape(gate_up.shape), weights[0])
            self.make_initializer(moe.experts.down_proj, weights[1])
            router = SimpleNamespace(weight=moe.gate.weight)
            self.make_matmul(router, f"{base}/router/MatMul", root_input)
            rows = [
                f"{base}/router/MatMul/output_0",
                f"/model/constants/INT64/[-1, {len(gate_up)}]",
            ]
            shape = ["batch_size * sequence_length", len(gate_up)]
            self.make_reshape(f"{base}/router/Reshape", rows, self.io_dtype, shape)
            self.make_node(
                "MoE", [root_input, f"{base}/router/Reshape/output_0", weights[0], "", weights[1]],
                [f"{base}/MoE/output_0"], name=f"{base}/MoE", domain="com.microsoft",
                activation_type="swiglu", activation_alpha=1.0, activation_beta=0.0,
                swiglu_fusion=1, k=self.moe_attrs["top_k"], normalize_routing_weights=1,
            )  # fmt: skip
            self.make_value(f"{base}/MoE/output_0", self.io_dtype, self.make_hidden_state_shape())
            output = f"{base}/MoE/output_0"
            if not self.normalized:
                output = self.scaled(base, output, len(gate_up))
            if hasattr(moe, "shared_expert"):
                output = self.added(f"{base}/Add", output, self.shared(layer_id, moe, root_input))
            self.layernorm_attrs["skip_input"] = output

        def make_mlp(self, layer_id: int, mlp: Any, root_input: str) -> None:
            self.intermediate_size = len(mlp.gate_proj.weight)  # not that of an expert
            super().make_mlp(layer_id, mlp, root_input)

        def scaled(self, base: str, path: str, experts: int) -> str:
            """Times the share of the chosen experts: QMoE makes them sum to 1, asked for it or not."""
            hidden, kind = self.make_hidden_state_shape, self.io_dtype
            chosen = self.moe_attrs["top_k"]
            router = f"{base}/router/MatMul/output_0"
            self.make_softmax(f"{base}/Softmax", router, kind, hidden(last_dim=experts))
            shares = [f"{base}/Softmax/output_0", f"/model/constants/INT64/[{chosen}]"]
            self.make_topk(f"{base}/TopK", shares, kind, hidden(last_dim=chosen))
            axes = [f"{base}/TopK/output_0", "/model/constants/INT64/[-1]"]
            self.make_reduce_sum(f"{base}/ReduceSum", axes, kind, hidden(last_dim=1), keepdims=True)
            self.make_mul(f"{base}/Scale", [path, f"{base}/ReduceSum/output_0"], kind, hidden())
            return f"{base}/Scale/output_0"

        def shared(self, layer_id: int, moe: Any, root_input: str) -> str:
            """An expert that every token goes to, and how much of it each takes."""
            base = f"/model/layers.{layer_id}/moe/shared"
            self.make_mlp(layer_id, moe.shared_expert, root_input)
            self.make_matmul(moe.shared_expert_gate, f"{base}/router/MatMul", root_input)
            shape = self.make_hidden_state_shape(last_dim=1)
            gate = f"{base}/router/MatMul/output_0"
            self.make_sigmoid(f"{base}/Sigmoid", gate, self.io_dtype, shape)
            parts = [self.mlp_attrs["output_0"], f"{base}/Sigmoid/output_0"]
            self.make_mul(f"{base}/Mul", parts, self.io_dtype, self.make_hidden_state_shape())
            return f"{base}/Mul/output_0"

    class Qwen3Moe(Mixture):
        qk_norm = True

    class Olmoe(Mixture, FullWidth, Clipped):
        """As OLMo 2 reads queries and keys, clipped as OLMo does."""

    return {
        "LlamaForCausalLM": Exact, "MistralForCausalLM": Exact, "Qwen2ForCausalLM": Exact,
        "Phi3ForCausalLM": Exact, "Qwen3ForCausalLM": Qwen3, "GemmaForCausalLM": Gemma,
        "Gemma2ForCausalLM": Gemma2, "Gemma3ForCausalLM": Gemma3, "OlmoForCausalLM": Olmo,
        "Olmo2ForCausalLM": Olmo2, "Olmo3ForCausalLM": Olmo2, "GPTNeoXForCausalLM": NeoX,
        "GlmForCausalLM": Glm, "Glm4ForCausalLM": Glm4, "SmolLM3ForCausalLM": SmolLM3,
        "MixtralForCausalLM": Mixture, "Qwen2MoeForCausalLM": Mixture,
        "Qwen3MoeForCausalLM": Qwen3Moe, "OlmoeForCausalLM": Olmoe,
    }  # fmt: skip
