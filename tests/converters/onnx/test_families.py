"""Every family as ONNX, with its live adapter, against transformers' logits."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft import models
from edgeft.converters.onnx import convert as converter
from edgeft.merge.view import open_merged
from edgeft.records import Limits
from edgeft.runtimes.onnx import ONNXRuntime
from edgeft.runtimes.reference import ReferenceRuntime
from helpers.converting import convert
from helpers.families import (
    MOE,
    SLIDING,
    SMALL,
    SPARSE,
    TEXT,
    TINY,
    Tiny,
    card_of,
    exact_gelu,
    make_tiny,
)  # fmt: skip
from helpers.tiny import write_gptq

Family = Callable[[str], tuple[Path, Path, Any]]

WIDE: dict[str, Any] = {"head_dim": 32}
LONG: dict[str, Any] = {"short_factor": [1.5] * 24, "long_factor": [4.0] * 24}
FITTING: dict[str, dict[str, Any]] = {
    "mistral": WIDE, "qwen3": WIDE, "qwen3_moe": WIDE, "glm": WIDE, "glm4": WIDE,
    "pythia": {"hidden_size": 256}, "pythia-sequential": {"hidden_size": 256},
    "chatglm2-32k": {"kv_channels": 32, "num_attention_heads": 2, "multi_query_group_num": 1},
    "chatglm3-32k": {"kv_channels": 32, "num_attention_heads": 2, "multi_query_group_num": 1},
    "phi4-mini": {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "rope_parameters":
                  TINY["phi4-mini"].options["rope_parameters"] | LONG},
}  # fmt: skip
"""options of tiny models for heads that onnxruntime's attention rotates by itself"""
NARROW: dict[str, Any] = {"hidden_size": 72, "head_dim": 16, "intermediate_size": 100}
"""widths that are no multiple of a block"""
SLIDES = SMALL | {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1}
MORE = {
    f"{case}-wide": dataclasses.replace(TINY[case], options=TINY[case].options | options)
    for case, options in FITTING.items()
} | {
    "llama-72": Tiny("LlamaConfig", SMALL | NARROW),
    "qwen2-72": Tiny("Qwen2Config", SMALL | NARROW | {"tie_word_embeddings": True}),
    "qwen2_moe-72": Tiny("Qwen2MoeConfig", SPARSE | NARROW | {
        "moe_intermediate_size": 20, "shared_expert_intermediate_size": 36}, MOE),
    "mistral-slides": Tiny("MistralConfig", SLIDES),
    "phi3-slides": Tiny("Phi3Config", SMALL | {"sliding_window": 8}),
    "qwen2-slides": Tiny("Qwen2Config", SLIDES),
    "qwen3-slides": Tiny("Qwen3Config", SLIDES | {"head_dim": 32, "attention_bias": True}),
    "smollm3-slides": Tiny("SmolLM3Config", SLIDES | {
        "num_hidden_layers": 4, "attention_bias": True, "mlp_bias": True}),
    "mixtral-slides": Tiny("MixtralConfig", SLIDES | {"num_local_experts": 4}, MOE),
    "qwen3_moe-slides": Tiny("Qwen3MoeConfig", SPARSE | {
        "use_sliding_window": True, "sliding_window": 8, "norm_topk_prob": False}, MOE),
    "qwen2_moe-dense": Tiny("Qwen2MoeConfig", SPARSE | {
        "shared_expert_intermediate_size": 48, "mlp_only_layers": [0], "norm_topk_prob": True}, MOE),
    "olmoe-clipped": Tiny("OlmoeConfig", SMALL | {
        "num_experts": 4, "num_experts_per_tok": 2, "clip_qkv": 0.5, "norm_topk_prob": True}, MOE),
    "olmo-narrow": Tiny("OlmoConfig", SMALL | {
        "hidden_size": 96, "clip_qkv": 0.5, "attention_bias": True}),
    "gemma-96": Tiny("GemmaConfig", SMALL | {"hidden_size": 96, "head_dim": 32}),
    "gemma2-erf": Tiny("Gemma2Config", SMALL | SLIDING | {
        "head_dim": 32, "attention_bias": True, "hidden_activation": "gelu"}),
    "llama-narrow": Tiny("LlamaConfig", SMALL | {"head_dim": 8, "hidden_act": "gelu_new"}),
    "llama-leftovers": Tiny("LlamaConfig", SMALL | {
        "sliding_window": 8, "layer_types": ["sliding_attention"] * 2, "clip_qkv": 0.1,
        "hidden_activation": "gelu"}),
}  # fmt: skip
"""settings that no model of `families.TINY` has, and heads that are rotated in another place"""

CASES = [*(case for case in TINY if "onnx" in card_of(case).formats), *MORE]


@pytest.fixture(scope="module")
def fitting(make: Family, tmp_path_factory: pytest.TempPathFactory) -> Family:
    @functools.cache
    def build(case: str) -> tuple[Path, Path, Any]:
        return make_tiny(tmp_path_factory.mktemp(case), MORE[case])

    return lambda case: build(case) if case in MORE else make(case)


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_live_adapter(fitting: Family, tmp_path: Path, case: str) -> None:
    import torch

    base, adapter, live = fitting(case)
    merged = open_merged(base, adapter)
    converted = convert(merged, tmp_path, "f32", format="onnx")
    assert abs(converted.proof().beta - 1) < 1e-3
    with ONNXRuntime(tmp_path, threads=1) as model, torch.inference_mode(), exact_gelu(live):
        ids = (model.encode(TEXT) * 9)[: min(model.context, 240)]
        given = torch.tensor([ids])
        wanted, got = live(given).logits[0].numpy(), model.logits(ids)
        assert np.abs(got - wanted).max() < 1e-3
        with live.disable_adapter():
            base_logits = live(given).logits[0].numpy()
        assert np.abs(base_logits - wanted).max() > 0.1, "the adapter changes nothing"
        # One token after the other, with what the cache holds, is the same.
        for length in (len(ids) // 2, len(ids) - 5):
            read = ids[:length]
            for token in model.stream(read, Limits(max_tokens=4, ignore_eos=True)):
                assert token.id == live(torch.tensor([read])).logits[0, -1].argmax()
                read = [*read, token.id]
            assert len(read) == length + 4


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Name in the checkpoint -> the values that a conversion keeps of the weight."""
    from edgeft.converters.onnx.weights import WeightWriter

    weights: dict[str, Any] = {}
    original = WeightWriter._prove

    def landed(self: WeightWriter, matrix: Any, given: Any, kept: Any) -> None:
        original(self, matrix, given, kept)
        shapes, names = self._merged.shapes, matrix.sources()
        kept = kept(np.arange(given.size // given.shape[-1]))

        def by_row(number: Callable[[str], Any]) -> Any:
            values = matrix.evaluate(lambda name: np.broadcast_to(number(name), shapes[name]))
            return values.reshape(kept.shape)[:, 0]

        owner = by_row(lambda name: np.int32(names.index(name)))
        row = by_row(lambda name: np.arange(shapes[name][0], dtype=np.int32)[:, None])
        for i, name in enumerate(names):
            values = weights.setdefault(name, np.full(shapes[name], np.nan, np.float32))
            values[row[owner == i]] = kept[owner == i]

    monkeypatch.setattr(WeightWriter, "_prove", landed)
    return weights


@pytest.fixture
def float_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products read their inputs in float32, not rounded to 8 bits."""
    from edgeft.converters.onnx import weights

    monkeypatch.setattr(weights, "ACCURACY_LEVEL_INT8", 1)


ROUNDED = (
    "llama", "qwen2", "phi3", "mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "pythia", "pythia-wide",
    "gemma3", "glm4", "glm4-wide", "llama-72", "qwen2-72", "qwen2_moe-72",
)  # fmt: skip
IN_EVERY_TYPE = ("llama", "qwen2-72", "gemma3", "mixtral", "qwen2_moe-72")
"""dense, with widths that are no multiple of a block, tied, and with experts"""


def rounded() -> list[Any]:
    """(case, quantization); 8 bits and mixed ones of most cases are slow tests."""
    return [
        pytest.param(case, quant, marks=() if fast else pytest.mark.slow)
        for quant in ("int8", "int4-mixed", "int4")
        for case in ROUNDED
        for fast in [quant == "int4" or case in IN_EVERY_TYPE]
    ]


@pytest.mark.parametrize(("case", "quant"), rounded())
def test_rounded_weights_give_the_logits_of_their_values(
    fitting: Family,
    tmp_path: Path,
    kept: dict[str, Any],
    float_inputs: None,
    case: str,
    quant: str,
) -> None:
    base, _, _ = fitting(case)
    merged = open_merged(base, None)
    convert(merged, tmp_path, quant, format="onnx")
    values = [(name, kept.get(name, merged.tensor(name))) for name in merged.shapes]
    changed = sum(not np.array_equal(value, merged.tensor(name)) for name, value in values)
    routers = sum("router" in name or "gate." in name for name in kept)
    assert changed == len(kept) - routers and changed >= 10
    with (
        ReferenceRuntime(base, weights=values) as reference,
        ONNXRuntime(tmp_path, threads=1) as model,
    ):
        ids = model.encode(TEXT)
        wanted, got = reference.logits(ids), model.logits(ids)
    # With weights of 8 bits onnxruntime's QMoE rounds its inputs, too, and cannot be told not to.
    if quant == "int8" and merged.card.fused:
        assert np.abs(got - wanted).mean() < 0.05 * wanted.std()
    else:
        assert np.abs(got - wanted).max() < 1e-3


@pytest.mark.parametrize(
    ("bits", "group", "symmetric"),
    [(4, 32, True), (4, 32, False), (3, 32, True), (2, 16, False), (4, -1, False)],
)
def test_experts_on_gptq_codes_give_the_logits_of_their_values(
    make: Family,
    tmp_path: Path,
    kept: dict[str, Any],
    float_inputs: None,
    bits: int,
    group: int,
    symmetric: bool,
) -> None:
    base, _, _ = make("qwen3_moe-tied")
    folder, _ = write_gptq(base, tmp_path / "gptq", bits, group, symmetric)
    merged, out = open_merged(folder, None), tmp_path / "out"
    out.mkdir()
    facts = convert(merged, out, "int4", format="onnx").facts
    assert facts["coded"] == facts["matrices"] - 1 and not facts["inexact"]  # but the embedding
    values = [(name, kept.get(name, merged.tensor(name))) for name in merged.shapes]
    with (
        ReferenceRuntime(base, weights=values) as reference,
        ONNXRuntime(out, threads=1) as model,
    ):
        ids = model.encode(TEXT)
        wanted, got = reference.logits(ids), model.logits(ids)
    assert np.abs(got - wanted).max() < 1e-3 * wanted.std()


def test_a_card_lists_onnx_where_there_is_a_builder_and_nowhere_else() -> None:
    from edgeft.converters.onnx.families import BUILDERS

    cards = [card for card in models.cards() if "onnx" in card.formats]
    as_glm = ("ChatGLMModel", "ChatGLMForConditionalGeneration")  # built as GlmForCausalLM
    assert {name for card in cards for name in card.architectures} == {*BUILDERS, *as_glm}


def test_layer_without_experts_has_its_own_width(fitting: Family, tmp_path: Path) -> None:
    base, _, _ = fitting("qwen2_moe-dense")
    values = converter.build_graph(open_merged(base, None), tmp_path).values
    dense, shared = (values[f"/model/layers.{i}/mlp/Mul/output_0"].shape[-1] for i in (0, 1))
    assert (dense, shared) == (SMALL["intermediate_size"], 48)


@pytest.mark.parametrize(("case", "length"), [("phi3-long", 32), ("qwen2-yarn", 64)])
def test_context_is_what_the_rope_tables_reach(
    make: Family, tmp_path: Path, case: str, length: int
) -> None:
    """The original context of longrope, and the stretched one of YaRN."""
    base, _, _ = make(case)
    convert(open_merged(base, None), tmp_path, "f32", format="onnx")
    told = json.loads((tmp_path / "genai_config.json").read_text())
    assert told["model"]["context_length"] == length == told["search"]["max_length"]
