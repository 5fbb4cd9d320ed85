"""Cards: which one a model gets, and its names on both sides."""

from __future__ import annotations

import dataclasses
import importlib

import pytest

from edgeft import models
from edgeft.errors import FormatError

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("name", "pattern", "numbers"),
    [
        ("blk.3.ffn_up.weight", "blk.{i}.ffn_up.weight", (3,)),
        ("model.layers.3.mlp.experts.7.w1", "model.layers.{i}.mlp.experts.{e}.w1", (3, 7)),
        ("output.weight", "output.weight", ()),
    ],
)
def test_a_name_is_a_pattern_and_its_numbers(
    name: str, pattern: str, numbers: tuple[int, ...]
) -> None:
    assert models.generalize(name) == (pattern, numbers)
    assert models.fill(pattern, numbers) == name


def test_names_of_tensors_in_both_formats() -> None:
    card = models.card_for({"architectures": ["MixtralForCausalLM"]})
    assert card.gguf_names("model.layers.3.self_attn.q_proj.weight") == (
        ("blk.3.attn_q.weight",),
        None,
    )
    names, expert = card.gguf_names("model.layers.3.block_sparse_moe.experts.7.w1.weight")
    assert (names, expert) == (("blk.3.ffn_gate_exps.weight",), 7)
    assert card.gguf_names("model.layers.3.nothing.weight") == ((), None)
    assert card.hf_name("blk.3.attn_q.weight") == "model.layers.3.self_attn.q_proj.weight"
    assert card.hf_name("blk.3.ffn_gate_exps.weight") is None, "a stack of tensors"


def test_qlora_packs_linear_layers_without_head_router_and_experts() -> None:
    card = models.card_for({"architectures": ["MixtralForCausalLM"]})
    layer = "model.layers.0."
    packed = {
        f"{layer}self_attn.q_proj.weight": True,
        f"{layer}block_sparse_moe.gate.weight": False,
        f"{layer}block_sparse_moe.experts.0.w1.weight": False,
        "lm_head.weight": False,
        "model.embed_tokens.weight": False,
    }
    assert {name: card.in_4bit(name, (8, 8)) for name in packed} == packed
    assert not card.in_4bit(f"{layer}input_layernorm.weight", (8,))


def test_an_unknown_architecture_is_refused_with_the_nearest() -> None:
    with pytest.raises(FormatError, match="no model card for architecture 'LamaForCausalLM'") as no:
        models.card_for({"architectures": ["LamaForCausalLM"]})
    assert no.value.hint.startswith("near: LlamaForCausalLM; there are chatglm, ")
    with pytest.raises(FormatError, match="neither architectures nor model_type"):
        models.card_for({})
    with pytest.raises(FormatError, match="no model card for GGUF architecture 'lama'"):
        models.card_for_gguf("lama")


def test_a_gguf_architecture_of_several_families_has_the_card_of_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared = models.card_for_gguf("llama")
    first = dataclasses.replace(shared, family="a_variant_of_llama")
    module = importlib.import_module("edgeft.models.cards")
    monkeypatch.setattr(module, "cards", lambda: (first, shared))
    assert models.card_for_gguf("llama").family == "llama"
    monkeypatch.setattr(module, "cards", lambda: (first,))
    assert models.card_for_gguf("llama") is first, "a family with another name than its GGUF's"


def test_buffers_of_older_checkpoints_are_no_weights() -> None:
    card = models.card_for({"architectures": ["GPTNeoXForCausalLM"]})
    layer = "gpt_neox.layers.3.attention."
    for name in ("bias", "masked_bias", "rotary_emb.inv_freq"):
        assert card.ignores(layer + name)
    for name in card.tensors:
        assert not card.ignores(name.replace("{i}", "3"))
