"""Every family: a tiny random model with a live adapter, held to transformers' logits.

The oracle is peft's live adapter on transformers' model in float32; what is held to it is the
float32 GGUF of edgeft's single pass, run by llama.cpp.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import chatglm
import numpy as np
import pytest
from tiny import make_tokenizer

from edgeft import models
from edgeft.converters import gguf
from edgeft.merge import open_merged
from edgeft.records import Limits
from edgeft.runtimes.gguf import GGUFRuntime

SMALL: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
TEXT = "<|im_start|>user\nturn on the lamp in room 17, then the lamp on 3<|im_end|>\n"


@dataclasses.dataclass(frozen=True)
class Tiny:
    """How to make a tiny model of a family."""

    config: str
    """class in transformers, or CHATGLM"""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    experts: tuple[str, ...] = ()
    """3-D parameters that LoRA adapts, too"""
    linears: tuple[str, ...] = ()
    """linear layers that LoRA adapts beside the card's; without `experts` peft takes these names
    for those of the experts, as it does for adapters from before transformers 5"""
    std: float = 0.2
    """of the random weights"""


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

PEFT_RENAMES = "peft.utils.transformers_weight_conversion.convert_peft_config_for_transformers"

TINY = {
    "llama": Tiny("LlamaConfig", SMALL),
    "llama-3": Tiny("LlamaConfig", SMALL | {"rope_parameters": {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}),
    "llama-linear": Tiny("LlamaConfig", SMALL | {"attention_bias": True, "rope_parameters": {
        "rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    "qwen2": Tiny("Qwen2Config", SMALL),
    "mixtral": Tiny("MixtralConfig", SMALL | {"num_local_experts": 4}, MOE),
    "chatglm2-32k": Tiny(CHATGLM, {"rope_ratio": 4, "_name_or_path": "THUDM/chatglm2-6b-32k"}),
    "chatglm3-32k": Tiny(CHATGLM, {"rope_ratio": 50, "_name_or_path": "THUDM/chatglm3-6b-32k"}),
    "glm": Tiny("GlmConfig", GLM | {"attention_bias": True}),
    "glm4": Tiny("Glm4Config", GLM | {"head_dim": 24, "attention_bias": False}),
    "deepseek2": Tiny("DeepseekV2Config", DEEPSEEK | {"rope_parameters": YARN}, MOE, MLP),
    "deepseek2-lite": Tiny("DeepseekV2Config", DEEPSEEK | {"q_lora_rank": None}, linears=MLP),
    "deepseek3": Tiny("DeepseekV3Config", DEEPSEEK | {
        "n_group": 4, "topk_group": 2, "rope_parameters": YARN}, MOE, MLP),
}  # fmt: skip
"""name of the case -> recipe; the family is the card that knows its architecture"""


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path, Any]]:
    """Case -> (base folder, adapter folder, the live model); each made once."""
    made: dict[str, tuple[Path, Path, Any]] = {}

    def build(case: str) -> tuple[Path, Path, Any]:
        if case not in made:
            made[case] = make_tiny(tmp_path_factory.mktemp(case), TINY[case])
        return made[case]

    return build


def make_tiny(folder: Path, tiny: Tiny, **lora: Any) -> tuple[Path, Path, Any]:
    import peft
    import safetensors.torch
    import torch
    import transformers

    base, adapter = folder / "base", folder / "adapter"
    size, end = make_tokenizer(base)
    torch.manual_seed(0)
    if tiny.config == CHATGLM:
        config = chatglm.OPTIONS | {"padded_vocab_size": size, "vocab_size": size} | tiny.options
        model = chatglm.make(config).eval()
        _randomize(model, tiny.std)
        (base / "config.json").write_text(json.dumps(config))
        safetensors.torch.save_model(model, str(base / "model.safetensors"))
        options = {"r": 4, "lora_alpha": 8}
    else:
        made = getattr(transformers, tiny.config)(
            vocab_size=size, eos_token_id=end, bos_token_id=end - 1, pad_token_id=end,
            **tiny.options,
        )  # fmt: skip
        model = transformers.AutoModelForCausalLM.from_config(made).eval()
        _randomize(model, tiny.std)
        model.save_pretrained(base)
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


@pytest.mark.parametrize("case", TINY)
def test_gguf_has_the_logits_of_the_live_adapter(
    make: Callable[[str], tuple[Path, Path, Any]], case: str, tmp_path: Path
) -> None:
    import torch

    base, adapter, live = make(case)
    merged = open_merged(base, adapter)
    gguf.convert(merged, tmp_path / "x.gguf", "f32", threads=2)
    assert merged.proof().beta == pytest.approx(1, abs=1e-4)
    with GGUFRuntime(tmp_path / "x.gguf", context=128, exact=True) as model:
        ids = model.encode(TEXT)
        got = model.logits(ids)
        chosen = [token.id for token in model.stream(ids, Limits(max_tokens=8, past_stops=True))]
    with torch.inference_mode():
        wanted = live(torch.tensor([ids])).logits[0].numpy()
        with live.disable_adapter():
            base_logits = live(torch.tensor([ids])).logits[0].numpy()
        greedy = live.generate(
            torch.tensor([ids]), max_new_tokens=8, min_new_tokens=8, do_sample=False
        )[0, len(ids) :]
    size = got.shape[1]
    assert np.abs(base_logits - wanted).max() > 1, "an adapter that changes nothing proves nothing"
    assert np.abs(got - wanted[:, :size]).max() < 1e-3 * wanted.std()
    assert chosen == greedy.tolist()


def test_every_card_is_held_to_a_model() -> None:
    import transformers

    tested = set()
    for tiny in TINY.values():
        architecture = tiny.config.replace("Config", "ForCausalLM")
        if tiny.config == CHATGLM:
            architecture = chatglm.OPTIONS["architectures"][0]
        else:
            assert hasattr(transformers, architecture)
        tested.add(models.card_for({"architectures": [architecture]}).family)
    assert {card.family for card in models.cards()} == tested
