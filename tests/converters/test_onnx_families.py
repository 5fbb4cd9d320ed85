"""ONNX graphs of every family, run by ONNX Runtime and held to transformers' logits."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from families import CHATGLM, GLM, LONGROPE, NEOX, SLIDING, SMALL, SPARSE, TINY, Tiny

from edgeft.converters import _onnx_families
from edgeft.converters._onnx_families import builder_class
from edgeft.errors import FormatError

pytest.importorskip("onnxruntime_genai")

VOCABULARY = SMALL["intermediate_size"]
"""so that another matrix has as many rows as the head"""
LENGTH, START = 60, 40
"""of the text, which is longer than every window and original context, and of its first part"""

SLIDES = SMALL | {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1}
MORE = {
    "mistral-slides": Tiny("MistralConfig", SMALL | {"sliding_window": 8}),
    "phi3-slides": Tiny("Phi3Config", SMALL | {"sliding_window": 8}),
    "phi4-long": Tiny("Phi3Config", SMALL | {
        "hidden_size": 256, "original_max_position_embeddings": 32, "rope_parameters": LONGROPE | {
            "partial_rotary_factor": 0.75, "long_factor": [4.0] * 24, "short_factor": [1.5] * 24,
            "attention_factor": 1.3}}, std=0.05),
    "qwen2-slides": Tiny("Qwen2Config", SLIDES),
    "qwen3-slides": Tiny("Qwen3Config", SLIDES | {"head_dim": 32, "attention_bias": True}),
    "qwen2_moe-dense": Tiny("Qwen2MoeConfig", SPARSE | {
        "shared_expert_intermediate_size": 48, "mlp_only_layers": [0], "norm_topk_prob": True}),
    "qwen3_moe-slides": Tiny("Qwen3MoeConfig", SPARSE | {
        "use_sliding_window": True, "sliding_window": 8, "norm_topk_prob": False}),
    "mixtral-slides": Tiny("MixtralConfig", SMALL | {"num_local_experts": 4, "sliding_window": 8}),
    "olmoe-clipped": Tiny("OlmoeConfig", SMALL | {
        "num_experts": 4, "num_experts_per_tok": 2, "clip_qkv": 0.5, "norm_topk_prob": True}),
    "smollm3-slides": Tiny("SmolLM3Config", SLIDES | {
        "num_hidden_layers": 4, "attention_bias": True, "mlp_bias": True}),
    "pythia-wide": Tiny("GPTNeoXConfig", NEOX | {"hidden_size": 128, "num_attention_heads": 2}),
    "pythia-no-bias": Tiny("GPTNeoXConfig", NEOX | {
        "attention_bias": False, "tie_word_embeddings": True}),
    "glm-wide": Tiny("GlmConfig", GLM | {"head_dim": 32, "attention_bias": True}),
    "gemma-96": Tiny("GemmaConfig", SMALL | {"hidden_size": 96, "head_dim": 32}),
    "gemma2-erf": Tiny("Gemma2Config", SMALL | SLIDING | {
        "head_dim": 32, "attention_bias": True, "hidden_activation": "gelu"}),
    "llama-leftovers": Tiny("LlamaConfig", SMALL | {
        "sliding_window": 8, "layer_types": ["sliding_attention"] * 2, "clip_qkv": 0.1,
        "hidden_activation": "gelu", "hidden_act": "silu", "partial_rotary_factor": 1.0}),
    "olmo-head-24": Tiny("OlmoConfig", SMALL | {
        "hidden_size": 96, "clip_qkv": 0.5, "attention_bias": True}),
    "llama-head-8": Tiny("LlamaConfig", SMALL | {"head_dim": 8, "hidden_act": "gelu_new"}),
}  # fmt: skip
"""beside the recipes that are held to llama.cpp"""
REFUSED = [case for case, tiny in TINY.items() if tiny.config.startswith("Deepseek")]
CASES = {
    case: tiny for case, tiny in (TINY | MORE).items()
    if case not in REFUSED and tiny.config != CHATGLM
}  # fmt: skip

Array = npt.NDArray[Any]


def model_of(tiny: Tiny) -> Any:
    import torch
    import transformers

    config = getattr(transformers, tiny.config)(
        vocab_size=VOCABULARY, eos_token_id=2, bos_token_id=1, pad_token_id=2,
        **copy.deepcopy(tiny.options),
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model.config.architectures = [type(model).__name__]
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, float("norm.weight" in name), tiny.std)
    return model.eval()


def build(model: Any, folder: Path) -> Any:
    import onnx_ir as ir

    kind = ir.DataType.FLOAT
    builder = builder_class(model.config)(model.config, kind, kind, "cpu", str(folder), {})
    builder.load_weights = lambda _: model
    builder.make_model("")
    return builder


def open_session(builder: Any, folder: Path) -> Callable[[], Callable[[Array], Array]]:
    """Runs that begin without a past; each takes ids and gives their logits."""
    import onnxruntime

    folder.mkdir(exist_ok=True)
    builder.save_model(str(folder))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / "model.onnx", options)
    inputs = [value.name for value in session.get_inputs()]
    outputs = [value.name for value in session.get_outputs()]

    def begin() -> Callable[[Array], Array]:
        none = np.zeros((1, builder.num_kv_heads, 0, builder.head_size), np.float32)
        feed = {name: none for name in inputs if name.startswith("past")}
        done = 0

        def run(ids: Array) -> Array:
            nonlocal done
            before, done = done, done + len(ids)
            new = {
                "input_ids": ids[None], "attention_mask": np.ones((1, done), np.int64),
                "position_ids": np.arange(before, done)[None],
            }  # fmt: skip
            feed.update((name, value) for name, value in new.items() if name in inputs)
            got = dict(zip(outputs, session.run(None, feed), strict=True))
            for name in feed.keys() - new.keys():
                feed[name] = got[name.replace("past_key_values", "present")]
            return np.asarray(got["logits"][0])

        return run

    return begin


def logits(model: Any, ids: Array) -> Array:
    import torch

    with torch.inference_mode():
        return np.asarray(model(torch.tensor(ids)[None]).logits[0].numpy())


def switch_as(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    if original := tiny.options.get("original_max_position_embeddings"):
        monkeypatch.setattr(_onnx_families, "_SWITCH", original)


@pytest.mark.parametrize("case", CASES)
def test_graphs_have_the_logits_of_transformers(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch_as(CASES[case], monkeypatch)
    model = model_of(CASES[case])
    ids = np.random.default_rng(0).integers(3, VOCABULARY, LENGTH)
    wanted, begin = logits(model, ids), open_session(build(model, tmp_path), tmp_path)
    assert np.abs(begin()(ids) - wanted).max() < 1e-4
    run = begin()
    steps = [run(ids[:START]), *(run(ids[i : i + 1]) for i in range(START, LENGTH))]
    assert np.abs(np.concatenate(steps) - wanted).max() < 1e-4
    short = ids[:14]  # longrope has other factors here
    assert np.abs(begin()(short) - logits(model, short)).max() < 1e-4


@pytest.mark.parametrize("case", CASES)
def test_graphs_are_made_before_there_are_weights(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch_as(CASES[case], monkeypatch)
    model = model_of(CASES[case]).to("meta")
    before = copy.deepcopy(model.config.to_dict())
    builder = build(model, tmp_path)
    assert {value.name for value in builder.model.graph.outputs} > {"logits"}
    assert model.config.to_dict() == before


def test_layers_without_experts_have_shapes_of_their_own(tmp_path: Path) -> None:
    tiny = CASES["qwen2_moe-dense"]
    values = build(model_of(tiny), tmp_path).values
    dense, shared = (values[f"/model/layers.{i}/mlp/Mul/output_0"].shape[-1] for i in (0, 1))
    assert dense == tiny.options["intermediate_size"]
    assert shared == tiny.options["shared_expert_intermediate_size"]


def test_the_builder_leaves_the_import_path_alone() -> None:
    code = (
        "import sys; from edgeft.converters._onnx_graphs import graphs; path = list(sys.path); "
        "graphs(); assert sys.path == path"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("case", ["llama", "gemma3", "pythia", "mixtral"])
def test_onnxruntime_genai_runs_them_and_takes_tokens_back(case: str, tmp_path: Path) -> None:
    import onnxruntime_genai as og

    model = model_of(CASES[case])
    builder = build(model, tmp_path)
    builder.save_model(str(tmp_path))
    builder.make_genai_config(model.config, {}, str(tmp_path))
    ids = np.random.default_rng(0).integers(3, VOCABULARY, LENGTH)
    wanted = logits(model, ids)
    runtime = og.Model(str(tmp_path))
    parameters = og.GeneratorParams(runtime)
    parameters.set_search_options(max_length=LENGTH)
    generator = og.Generator(runtime, parameters)
    for first, last in ((0, 30), (30, 31), (31, 50), (5, 40)):
        if first == 5:
            generator.rewind_to(5)
        generator.append_tokens(ids[first:last].astype(np.int32))
        assert np.abs(generator.get_logits()[0, -1] - wanted[last - 1]).max() < 1e-4


def test_onnxruntime_genai_changes_the_factors_of_longrope(tmp_path: Path) -> None:
    import onnxruntime_genai as og

    start, total = 4095, 4099
    model = model_of(Tiny("Phi3Config", SMALL | {
        "max_position_embeddings": 8192, "original_max_position_embeddings": 4096,
        "rope_parameters": LONGROPE}))  # fmt: skip
    model.set_attn_implementation("sdpa")
    builder = build(model, tmp_path)
    builder.save_model(str(tmp_path))
    builder.make_genai_config(model.config, {}, str(tmp_path))
    runtime = og.Model(str(tmp_path))
    parameters = og.GeneratorParams(runtime)
    parameters.set_search_options(max_length=total, min_length=total)
    generator = og.Generator(runtime, parameters)
    ids = np.random.default_rng(0).integers(3, VOCABULARY, start)
    generator.append_tokens(ids.astype(np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    ids = generator.get_sequence(0).astype(np.int64)
    assert len(ids) == total
    assert ids[start] == logits(model, ids[:start])[-1].argmax()
    assert ids[4096] == logits(model, ids[:4096])[-1].argmax()
    assert list(ids[4097:]) == list(logits(model, ids[:-1])[-2:].argmax(-1))


@pytest.mark.parametrize(
    ("config", "options", "word"),
    [
        ("LlamaConfig", {"rope_parameters": {
            "rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "dynamic"),
        ("LlamaConfig", {"hidden_act": "relu6"}, "relu6"),
        ("LlamaConfig", {"head_dim": 12}, "12"),
        ("MixtralConfig", {"num_local_experts": 4, "hidden_act": "gelu"}, "gelu"),
        ("GemmaConfig", {"use_bidirectional_attention": True}, "bidirectional"),
        ("Phi3Config", TINY["phi3-long"].options, "4096 tokens, this model at 32"),
    ],
)  # fmt: skip
def test_what_no_graph_computes_is_refused(config: str, options: dict[str, Any], word: str) -> None:
    import transformers

    made = getattr(transformers, config)(**copy.deepcopy(SMALL | options))
    made.architectures = [config.replace("Config", "ForCausalLM")]
    with pytest.raises(FormatError, match=word):
        builder_class(made)


@pytest.mark.parametrize(
    ("architecture", "word"),
    [
        ("DeepseekV3ForCausalLM", "latent attention"),
        ("DeepseekV2ForCausalLM", "latent attention"),
        ("ChatGLMModel", "has no class"),
        ("ChatGLMForConditionalGeneration", "has no class"),
        ("Olmo9ForCausalLM", "did you mean"),
    ],
)
def test_families_without_a_graph_are_refused(architecture: str, word: str) -> None:
    with pytest.raises(FormatError, match=word):
        builder_class(SimpleNamespace(architectures=[architecture]))
