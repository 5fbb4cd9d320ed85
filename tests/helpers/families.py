"""Every family as a tiny random model with a live adapter: the recipes, and how they are made."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from edgeft import models
from helpers import chatglm
from helpers.tiny import make_tokenizer

SMALL: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
TEXT = "<|im_start|>user\nturn on the lamp in room 17, then the lamp on 3<|im_end|>\n"


@dataclasses.dataclass(frozen=True)
class Tiny:
    """How to make a tiny model of a family."""

    config: str
    """class in transformers"""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    experts: tuple[str, ...] = ()
    """3-D parameters that LoRA adapts, too"""
    linears: tuple[str, ...] = ()
    """linear layers that LoRA adapts beside the card's; without `experts` peft takes these names
    for those of the experts, as it does for adapters from before transformers 5"""
    std: float = 0.2
    """of the random weights"""
    half_gelu: bool = False
    """llama.cpp takes GELU from a table of float16; the live model then does the same"""


CHATGLM = "ChatGLM"
"""what `chatglm.py` makes"""
GLM = SMALL | {"head_dim": 16}
DEEPSEEK = SMALL | {
    "num_hidden_layers": 3, "num_key_value_heads": 4, "kv_lora_rank": 24, "q_lora_rank": 20,
    "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 16, "n_routed_experts": 8,
    "num_experts_per_tok": 3, "moe_intermediate_size": 40, "first_k_dense_replace": 1,
    "n_shared_experts": 2, "routed_scaling_factor": 1.5,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "mscale": 0.707,
    "mscale_all_dim": 0.707, "original_max_position_embeddings": 32, "beta_fast": 32,
    "beta_slow": 1,
}  # fmt: skip
MLP = ("gate_proj", "up_proj", "down_proj")
MOE = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")

NEOX = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
SLIDING = {
    "num_hidden_layers": 3, "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0 + i / 8 for i in range(8)],
    "long_factor": [2.0 + i for i in range(8)],
}  # fmt: skip

SPARSE: dict[str, Any] = SMALL | {
    "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2,
}  # fmt: skip


def yarn(**more: Any) -> dict[str, Any]:
    """A quarter of the text is within the original length; the ramp has four steps."""
    return {"rope_parameters": {
        "rope_type": "yarn", "rope_theta": 50.0, "factor": 4.0,
        "original_max_position_embeddings": 16} | more}  # fmt: skip


TINY = {
    "llama": Tiny("LlamaConfig", SMALL),
    "llama-3": Tiny("LlamaConfig", SMALL | {"rope_parameters": {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}),
    "llama-linear": Tiny("LlamaConfig", SMALL | {
        "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "rope_parameters": {
            "rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    "llama-yarn": Tiny("LlamaConfig", SMALL | {"head_dim": 32} | yarn()),
    "mistral": Tiny("MistralConfig", SMALL | {"sliding_window": None, "head_dim": 24}),
    "mistral-window": Tiny("MistralConfig", SMALL | {"sliding_window": 128}),
    "qwen2": Tiny("Qwen2Config", SMALL | {"tie_word_embeddings": True}),
    "qwen2-yarn": Tiny("Qwen2Config", SMALL | {"max_position_embeddings": 16} | yarn()),
    "qwen2-linear": Tiny("Qwen2Config", SMALL | {"rope_parameters": {
        "rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    "pythia": Tiny("GPTNeoXConfig", NEOX, half_gelu=True),
    "pythia-sequential": Tiny("GPTNeoXConfig", NEOX | {
        "use_parallel_residual": False, "hidden_act": "gelu_new", "rope_parameters": {
            "rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}},
        half_gelu=True),
    "olmo": Tiny("OlmoConfig", SMALL),
    "olmo-clipped": Tiny("OlmoConfig", SMALL | {"clip_qkv": 1.0, "tie_word_embeddings": True}),
    "olmo2": Tiny("Olmo2Config", SMALL),
    "olmo3": Tiny("Olmo3Config", SMALL | SLIDING),
    "olmo3-yarn": Tiny("Olmo3Config", SMALL | SLIDING | {"rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        "full_attention": yarn(attention_factor=1.2)["rope_parameters"]}}),
    "phi3": Tiny("Phi3Config", SMALL),
    "phi3-short": Tiny("Phi3Config", SMALL | {
        "max_position_embeddings": 1024, "original_max_position_embeddings": 256,
        "rope_parameters": LONGROPE}),
    "phi3-long": Tiny("Phi3Config", SMALL | {
        "original_max_position_embeddings": 32, "rope_parameters": LONGROPE,
        "tie_word_embeddings": True}),
    "phi4-mini": Tiny("Phi3Config", SMALL | {
        "original_max_position_embeddings": 256, "rope_parameters": LONGROPE | {
            "partial_rotary_factor": 0.75, "long_factor": [4.0] * 6, "short_factor": [1.5] * 6,
            "attention_factor": 1.3}}),
    "gemma": Tiny("GemmaConfig", SMALL | {"head_dim": 32}, half_gelu=True),
    "gemma2": Tiny("Gemma2Config", SMALL | SLIDING | {
        "head_dim": 32, "query_pre_attn_scalar": 32, "attn_logit_softcapping": 4.0,
        "final_logit_softcapping": 20.0}, half_gelu=True),
    "gemma3": Tiny("Gemma3TextConfig", SMALL | SLIDING | {
        "head_dim": 32, "query_pre_attn_scalar": 32, "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0}}},
        half_gelu=True),
    "qwen3": Tiny("Qwen3Config", SMALL | {"head_dim": 24}),
    "qwen3-yarn": Tiny("Qwen3Config", SMALL | {"head_dim": 32, "tie_word_embeddings": True}
                       | yarn(attention_factor=1.3)),
    "qwen2_moe": Tiny("Qwen2MoeConfig", SPARSE | {"shared_expert_intermediate_size": 48}, MOE),
    "qwen2_moe-no-bias": Tiny("Qwen2MoeConfig", SPARSE | {
        "shared_expert_intermediate_size": 48, "qkv_bias": False} | yarn(mscale=0.7, mscale_all_dim=2.0),
        MOE),
    "qwen3_moe": Tiny("Qwen3MoeConfig", SPARSE | {"norm_topk_prob": True, "head_dim": 24}, MOE),
    "qwen3_moe-tied": Tiny("Qwen3MoeConfig", SPARSE | {
        "norm_topk_prob": True, "tie_word_embeddings": True} | yarn(), MOE),
    "smollm3": Tiny("SmolLM3Config", SMALL | {"num_hidden_layers": 4}),
    "olmoe": Tiny("OlmoeConfig", SMALL | {
        "num_key_value_heads": 4, "num_experts": 4, "num_experts_per_tok": 2}, MOE),
    "mixtral": Tiny("MixtralConfig", SMALL | {"num_local_experts": 4}, MOE),
    "chatglm2-32k": Tiny(CHATGLM, {"rope_ratio": 4, "_name_or_path": "THUDM/chatglm2-6b-32k"}),
    "chatglm3-32k": Tiny(CHATGLM, {"rope_ratio": 50, "_name_or_path": "THUDM/chatglm3-6b-32k"}),
    "glm": Tiny("GlmConfig", GLM | {"attention_bias": True}),
    "glm4": Tiny("Glm4Config", GLM | {"head_dim": 24, "attention_bias": False}),
    "deepseek2": Tiny("DeepseekV2Config", DEEPSEEK | {"rope_parameters": YARN}, MOE, MLP),
    "deepseek2-lite": Tiny("DeepseekV2Config", DEEPSEEK | {"q_lora_rank": None}, linears=MLP),
    "deepseek3": Tiny("DeepseekV3Config", DEEPSEEK | {
        "n_group": 4, "topk_group": 2,
        "rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}}, MOE, MLP),
}  # fmt: skip
"""name of the case -> recipe; the family is the card that knows its architecture"""


def architecture_of(tiny: Tiny) -> str:
    """As in config.json."""
    if tiny.config == CHATGLM:
        return str(chatglm.OPTIONS["architectures"][0])
    return re.sub("(Text)?Config", "ForCausalLM", tiny.config)


def card_of(case: str) -> models.Card:
    return models.card_for({"architectures": [architecture_of(TINY[case])]})


def by_family(cases: Sequence[str], *also: str) -> list[Any]:
    """Cases as parameters: the first of each family and `also` are fast tests, all others slow ones.

    The others differ in RoPE, tied embeddings and biases.
    """
    first = {card_of(case).family: case for case in reversed(cases)}
    fast = {*first.values(), *also}
    return [pytest.param(case, marks=() if case in fast else pytest.mark.slow) for case in cases]


PEFT_RENAMES = "peft.utils.transformers_weight_conversion.convert_peft_config_for_transformers"
"""what makes peft take "gate_proj" for the experts', so that no linear layer of this name is adapted"""


def make_tiny(folder: Path, tiny: Tiny, **lora: Any) -> tuple[Path, Path, Any]:
    import peft
    import safetensors.torch
    import torch
    import transformers

    base, adapter = folder / "base", folder / "adapter"
    size, end = make_tokenizer(base)
    torch.manual_seed(0)
    if tiny.config == CHATGLM:
        config = chatglm.OPTIONS | {"padded_vocab_size": size} | tiny.options
        model = chatglm.make(config).eval()
        _randomize(model, tiny.std)
        (base / "config.json").write_text(json.dumps(config))
        safetensors.torch.save_model(model, str(base / "model.safetensors"))
        options = {"r": 4, "lora_alpha": 8}
    else:
        made = getattr(transformers, tiny.config)(
            vocab_size=size, eos_token_id=end, bos_token_id=end - 1, pad_token_id=end,
            **copy.deepcopy(tiny.options),  # transformers writes into rope_parameters
        )  # fmt: skip
        model = transformers.AutoModelForCausalLM.from_config(made).eval()
        _randomize(model, tiny.std)
        model.save_pretrained(base)
        if tiny.half_gelu:
            half_gelu(model)
        config = made.to_dict() | {"architectures": [type(model).__name__]}
        options = {"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"}
    linears = [*models.card_for(config).lora_targets, *tiny.linears]
    options |= {"target_modules": linears} | lora
    if tiny.experts:
        options["target_parameters"] = list(tiny.experts)
    with mock.patch(PEFT_RENAMES) if tiny.experts else contextlib.nullcontext():
        live = peft.get_peft_model(model, peft.LoraConfig(**options)).eval()
    _randomize(live, tiny.std, only="lora_")
    live.save_pretrained(adapter)
    return base, adapter, live


def _randomize(model: Any, std: float, only: str = "") -> None:
    import torch

    with torch.no_grad():
        biases = ((n, b) for n, b in model.named_buffers() if n.endswith("correction_bias"))
        for name, parameter in [*model.named_parameters(), *biases]:
            if only in name:
                parameter.normal_(0, std)
                if "norm" in name and name.endswith("weight"):
                    parameter.add_(1)


def half_gelu(model: Any) -> None:
    """GELU as in llama.cpp, ggml-cpu/vec.h: `ggml_vec_gelu_f32`."""
    import torch

    def table(module: Any, inputs: tuple[Any], output: Any) -> Any:
        found = torch.nn.functional.gelu(inputs[0].half().float(), approximate="tanh")
        return torch.where(inputs[0] >= 10, inputs[0], found.half().float())

    kinds = ("GELUActivation", "NewGELUActivation", "GELUTanh")
    found = [part for part in model.modules() if type(part).__name__ in kinds]
    assert len(found) == model.config.num_hidden_layers
    for part in found:
        part.register_forward_hook(table)


@contextlib.contextmanager
def exact_gelu(live: Any) -> Iterator[None]:
    """GELU as it is defined, and not as `half_gelu` makes it."""
    with contextlib.ExitStack() as stack:
        for part in live.modules():
            if "GELU" in type(part).__name__:
                stack.enter_context(mock.patch.object(part, "_forward_hooks", OrderedDict()))
        yield
