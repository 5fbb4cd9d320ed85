"""The graph builder's class of each family, by transformers' architecture.

    BUILDERS["Qwen3ForCausalLM"]            # a subclass of `edgeft.converters.onnx.decoder.Decoder`

This module imports torch and onnxruntime_genai: import it inside functions.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from edgeft.converters.onnx.decoder import PLAIN_MODEL, Decoder, Gemma2Model
from edgeft.converters.onnx.experts import MixtureOfExperts


class Qwen3(Decoder):
    """Queries and keys are normalized head by head."""

    qk_norm = True


class Gemma(Decoder):
    """Embeddings are scaled, and norms multiply by 1 + weight."""

    def __init__(self, config: Any, *args: Any) -> None:
        super().__init__(config, *args)
        self.embed_attrs["scale"] = float(config.hidden_size**0.5)
        self.layernorm_attrs["add_offset"] = 1


class Gemma2(Gemma, Gemma2Model):  # type: ignore[misc]
    """Norms before and after attention and feed-forward."""


class Gemma3(Gemma2):
    qk_norm, runs_as = True, "gemma3_text"


class ClippedQKV(Decoder):
    """Queries, keys and values may be clipped before they are rotated."""

    def __init__(self, config: Any, *args: Any) -> None:
        super().__init__(config, *args)
        self.clip = config.clip_qkv

    def make_attention_qk_rope(self, layer_id: int, **kwargs: Any) -> tuple[str, str]:
        for key in ("q_path", "k_path", "v_path") if self.clip is not None else ():
            path = self.attention_attrs[key]
            if path:
                name = f"/model/layers.{layer_id}/attn/{key}/Clip"
                low, high = (f"/model/constants/FLOAT/{float(x)}" for x in (-self.clip, self.clip))
                shape = self.values[path].shape
                self.make_clip(name, [path, low, high], self.io_dtype, shape)
                self.attention_attrs[key] = f"{name}/output_0"
        return super().make_attention_qk_rope(layer_id, **kwargs)


class Olmo(ClippedQKV):
    """Norms without weights."""

    def __init__(self, config: Any, *args: Any) -> None:
        super().__init__(config, *args)
        self.layernorm_attrs |= {"simple": False, "epsilon": 1e-5}

    def make_layernorm(self, layer_id: int, layernorm: Any, **kwargs: Any) -> None:
        size = self.hidden_size
        identity = SimpleNamespace(weight=torch.ones(size), bias=torch.zeros(size))
        super().make_layernorm(layer_id, identity, **kwargs)


class FullWidthQKNorm(Decoder):
    """Queries and keys are normalized before they are cut into heads."""

    qk_norm, runs_as = True, PLAIN_MODEL

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


class Olmo2(FullWidthQKNorm):
    """Norms after attention and feed-forward only."""

    def make_layer(self, layer_id: int, layer: Any) -> None:
        attrs = self.layernorm_attrs
        path = attrs["root_input"]
        if not attrs["first_layernorm"]:
            name = f"/model/layers.{layer_id}/input/Add"
            path = self.add_sum(name, path, attrs["skip_input"])
        self.make_attention(layer_id, layer.self_attn, root_input=path)
        norm = layer.post_attention_layernorm
        normed = self.add_norm(layer_id, norm, attrs["skip_input"], "post_attention")
        path = self.add_sum(f"/model/layers.{layer_id}/post_attention/Add", path, normed)
        self.make_mlp(layer_id, layer.mlp, root_input=path)
        norm = layer.post_feedforward_layernorm
        attrs["skip_input"] = self.add_norm(layer_id, norm, attrs["skip_input"], "post_feedforward")
        attrs["root_input"] = path
        self.end_layer(layer_id)


class GPTNeoX(Decoder):
    """Queries, keys and values of a head are neighbouring rows of one matrix; attention and
    feed-forward may read the same state."""

    runs_as = PLAIN_MODEL

    def __init__(self, config: Any, *args: Any) -> None:
        super().__init__(config, *args)
        self.layernorm_attrs["simple"] = False
        self.parallel = config.use_parallel_residual

    def make_attention_unpacked(self, layer_id: int, attention: Any, *_: Any, **__: Any) -> None:
        packed = attention.query_key_value
        shape = (self.num_attn_heads, 3, self.head_size)
        weight = packed.weight.view(*shape, self.hidden_size)
        bias = None if packed.bias is None else packed.bias.view(*shape)
        for i, name in enumerate(("q_proj", "k_proj", "v_proj")):
            rows = weight[:, i].reshape(-1, self.hidden_size)
            shift = None if bias is None else bias[:, i].reshape(-1)
            setattr(attention, name, SimpleNamespace(weight=rows, bias=shift))

    def make_mlp(self, layer_id: int, mlp: Any, root_input: str) -> None:
        layers = SimpleNamespace(fc1=mlp.dense_h_to_4h, fc2=mlp.dense_4h_to_h)
        self.make_mlp_fc(layer_id, layers, root_input)
        self.layernorm_attrs["skip_input"] = self.mlp_attrs["output_0"]

    def make_layer(self, layer_id: int, layer: Any) -> None:
        layer.self_attn = layer.attention
        if self.parallel:
            self.make_parallel_layer(layer_id, layer)
        else:
            super().make_layer(layer_id, layer)

    def make_parallel_layer(self, layer_id: int, layer: Any) -> None:
        """Attention and feed-forward of the same state, added to it together."""
        attrs = self.layernorm_attrs
        skip = not attrs["first_layernorm"]
        norm = layer.input_layernorm
        self.make_layernorm(layer_id, norm, skip=skip, simple=False, location="input")
        state = attrs["root_input"]
        self.make_attention(layer_id, layer.attention, root_input=attrs["output_0"])
        attended = attrs["skip_input"]
        norm = layer.post_attention_layernorm
        path = self.add_norm(layer_id, norm, state, "post_attention")
        self.make_mlp(layer_id, layer.mlp, root_input=path)
        name = f"/model/layers.{layer_id}/parallel/Add"
        attrs["skip_input"] = self.add_sum(name, attended, attrs["skip_input"])
        self.end_layer(layer_id)


class Glm(Decoder):
    """Neighbouring columns are rotated together."""

    runs_as = PLAIN_MODEL

    def __init__(self, config: Any, *args: Any) -> None:
        super().__init__(config, *args)
        self.rope_attrs["interleaved"] = 1


class Glm4(Glm, Gemma2Model):  # type: ignore[misc]
    """Norms before and after attention and feed-forward, where Gemma 2 has them."""

    def __init__(self, config: Any, *args: Any) -> None:
        config.query_pre_attn_scalar = config.head_dim
        super().__init__(config, *args)
        self.embed_attrs["scale"] = 1
        self.layernorm_attrs["add_offset"] = 0

    def make_layer(self, layer_id: int, layer: Any) -> None:
        as_gemma2 = SimpleNamespace(
            input_layernorm=layer.input_layernorm, self_attn=layer.self_attn, mlp=layer.mlp,
            post_attention_layernorm=layer.post_self_attn_layernorm,
            pre_feedforward_layernorm=layer.post_attention_layernorm,
            post_feedforward_layernorm=layer.post_mlp_layernorm,
        )  # fmt: skip
        super().make_layer(layer_id, as_gemma2)


class SmolLM3(Decoder):
    """Every fourth layer has no rotary embeddings."""

    def __init__(self, config: Any, *args: Any) -> None:
        super().__init__(config, *args)
        self.rope_layers = config.no_rope_layers

    def rotates(self, layer_id: int) -> bool:
        return bool(self.rope_layers[layer_id])


class Qwen3Moe(MixtureOfExperts):
    qk_norm = True


class Olmoe(MixtureOfExperts, FullWidthQKNorm, ClippedQKV):
    """Queries and keys normalized as in OLMo 2, clipped as in OLMo."""


BUILDERS: dict[str, type[Decoder]] = {
    "LlamaForCausalLM": Decoder,
    "MistralForCausalLM": Decoder,
    "Qwen2ForCausalLM": Decoder,
    "Phi3ForCausalLM": Decoder,
    "Qwen3ForCausalLM": Qwen3,
    "GemmaForCausalLM": Gemma,
    "Gemma2ForCausalLM": Gemma2,
    "Gemma3ForCausalLM": Gemma3,
    "OlmoForCausalLM": Olmo,
    "Olmo2ForCausalLM": Olmo2,
    "Olmo3ForCausalLM": Olmo2,
    "GPTNeoXForCausalLM": GPTNeoX,
    "GlmForCausalLM": Glm,
    "Glm4ForCausalLM": Glm4,
    "SmolLM3ForCausalLM": SmolLM3,
    "MixtralForCausalLM": MixtureOfExperts,
    "Qwen2MoeForCausalLM": MixtureOfExperts,
    "Qwen3MoeForCausalLM": Qwen3Moe,
    "OlmoeForCausalLM": Olmoe,
}
