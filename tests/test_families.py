"""Every family: a tiny random model with a live adapter, held to transformers' logits.

The oracle is peft's live adapter on transformers' model in float32; what is held to it is the
float32 GGUF of edgeft's single pass, run by llama.cpp.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny import make_tokenizer

from edgeft import models
from edgeft.base import import_gguf
from edgeft.converters import _metadata, gguf
from edgeft.errors import FormatError
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
    """class in transformers"""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    experts: tuple[str, ...] = ()
    """3-D parameters that LoRA adapts, too"""
    std: float = 0.2
    """of the random weights"""
    half_gelu: bool = False
    """llama.cpp takes GELU from a table of float16; the live model then does the same"""


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
    import torch
    import transformers

    base, adapter = folder / "base", folder / "adapter"
    size, end = make_tokenizer(base)
    config = getattr(transformers, tiny.config)(
        vocab_size=size, eos_token_id=end, bos_token_id=end - 1, pad_token_id=end, **tiny.options
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    _randomize(model, tiny.std)
    model.save_pretrained(base)
    if tiny.half_gelu:
        _half_gelu(model)
    card = models.card_for(config.to_dict() | {"architectures": [type(model).__name__]})
    options = {"r": 4, "lora_alpha": 8, "target_modules": list(card.lora_targets)} | lora
    if tiny.experts:
        options["target_parameters"] = list(tiny.experts)
    live = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **options)).eval()
    _randomize(live, tiny.std, only="lora_")
    live.save_pretrained(adapter)
    return base, adapter, live


def _randomize(model: Any, std: float, only: str = "") -> None:
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if only in name:
                parameter.normal_(0, std)
                if "norm" in name and name.endswith("weight"):
                    parameter.add_(1)


def _half_gelu(model: Any) -> None:
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


@pytest.mark.parametrize("case", [case for case, tiny in TINY.items() if tiny.half_gelu])
def test_the_gelu_of_llama_cpp_is_close_to_transformers(case: str, tmp_path: Path) -> None:
    import torch

    # It is the 11 bits of float16: the tanh form and the one by erf are equally far.
    _, _, live = make_tiny(tmp_path, dataclasses.replace(TINY[case], half_gelu=False))
    ids = torch.arange(200).reshape(4, 50)
    with torch.inference_mode():
        exact = live(ids).logits.numpy()
        _half_gelu(live)
        table = live(ids).logits.numpy()
    off = np.abs(table - exact).max() / exact.std()
    assert 0 < off < 1e-2


@pytest.mark.parametrize("case", TINY)
def test_default_targets_are_every_linear_layer(
    make: Callable[[str], tuple[Path, Path, Any]], case: str
) -> None:
    import torch

    left = {
        name.rpartition(".")[2]
        for name, module in make(case)[2].named_modules()
        if type(module) is torch.nn.Linear and not re.search(r"\.(base_layer|lora_.*)$", name)
    }
    assert left <= {"lm_head"}


OLD: dict[str, tuple[str, dict[str, Any]]] = {
    "rotary_pct": (
        "pythia-sequential", {"rotary_pct": 0.5, "rotary_emb_base": 500.0}),
    "rope_local_base_freq": ("gemma3", {
        "rope_theta": 5000.0, "rope_local_base_freq": 100.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    "sliding_window_pattern": ("gemma3", {
        "layer_types": None, "sliding_window_pattern": 2, "rope_theta": 5000.0,
        "rope_local_base_freq": 100.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    "longrope": ("phi3-long", {
        "rope_theta": 10000.0, "rope_scaling": {
            "type": "longrope", "long_factor": LONGROPE["long_factor"],
            "short_factor": LONGROPE["short_factor"]}}),
    "partial_rotary_factor": ("phi4-mini", {
        "partial_rotary_factor": 0.75, "rope_theta": 10000.0, "rope_scaling": {
            "type": "longrope", "long_factor": [4.0] * 6, "short_factor": [1.5] * 6,
            "attention_factor": 1.3}}),
}  # fmt: skip
"""what it is about -> (case, keys before transformers 5 instead of `rope_parameters`)"""


@pytest.mark.parametrize("about", OLD)
def test_older_config_json_means_the_same(
    make: Callable[[str], tuple[Path, Path, Any]], about: str, tmp_path: Path
) -> None:
    import transformers

    case, keys = OLD[about]
    base, _, live = make(case)
    old = json.loads((base / "config.json").read_text()) | keys
    del old["rope_parameters"]
    folder = _variant(base, tmp_path, old)
    read = transformers.AutoConfig.from_pretrained(folder)
    read.rope_parameters.pop("type", None)
    for key in ("rope_parameters", "layer_types"):
        assert getattr(read, key, None) == getattr(live.config, key, None), "not the same model"
    want, got = open_merged(base, None), open_merged(folder, None)
    assert _metadata.metadata(got) == _metadata.metadata(want)
    wanted, found = _metadata.rope_factors(want), _metadata.rope_factors(got)
    assert wanted.keys() == found.keys()
    assert all(np.array_equal(wanted[name], found[name]) for name in wanted)


@pytest.mark.parametrize(
    "family", ["pythia", "olmo", "olmo2", "olmo3", "phi3", "gemma", "gemma2", "gemma3"]
)
def test_what_config_json_leaves_out_is_as_in_transformers(family: str) -> None:
    import transformers

    card = next(card for card in models.cards() if card.family == family)
    name = card.architectures[0].replace("ForCausalLM", "Config")
    kind = getattr(transformers, name.replace("Gemma3", "Gemma3Text"))
    whole = kind().to_dict() | {"architectures": list(card.architectures)}
    left_out = {*card.defaults, "rope_parameters", "layer_types"}
    short = {key: value for key, value in whole.items() if key not in left_out}
    header = [
        _metadata.metadata(SimpleNamespace(card=card, config=config))  # type: ignore[arg-type]
        for config in (whole, short)
    ]
    assert header[0] == header[1]


@pytest.mark.parametrize(
    ("case", "keys"),
    [
        ("pythia", {"hidden_act": "relu"}),
        ("pythia", {"tie_word_embeddings": True}),
        ("olmo3", {"rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 5000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}}),
        ("phi3", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0}}),
        ("gemma", {"use_bidirectional_attention": True}),
        ("gemma2", {"query_pre_attn_scalar": 16}),
        ("gemma2", {"attn_logit_softcapping": None}),
        ("gemma2", {"tie_word_embeddings": False}),
        ("gemma3", {"attn_logit_softcapping": 50.0}),
        ("gemma3", {"hidden_activation": "silu"}),
        ("gemma3", {"rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 5000.0},
            "sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}}}),
    ],
)  # fmt: skip
def test_what_llama_cpp_does_not_compute_is_refused(
    make: Callable[[str], tuple[Path, Path, Any]], case: str, keys: dict[str, Any], tmp_path: Path
) -> None:
    base, _, _ = make(case)
    config = json.loads((base / "config.json").read_text())
    folder = _variant(base, tmp_path, config | keys)
    with pytest.raises(FormatError, match="llama.cpp does not "):
        _metadata.metadata(open_merged(folder, None))


def test_phi3_is_offered_as_far_as_its_window(
    make: Callable[[str], tuple[Path, Path, Any]], tmp_path: Path
) -> None:
    base, _, _ = make("phi3")
    config = json.loads((base / "config.json").read_text())
    folder = _variant(base, tmp_path, config | {"sliding_window": 100})
    assert _metadata.metadata(open_merged(folder, None))["phi3.context_length"] == 100
    assert _metadata.metadata(open_merged(base, None))["phi3.context_length"] == 256


def test_buffers_of_older_checkpoints_are_no_weights() -> None:
    card = models.card_for({"architectures": ["GPTNeoXForCausalLM"]})
    layer = "gpt_neox.layers.3.attention."
    for name in ("bias", "masked_bias", "rotary_emb.inv_freq"):
        assert card.ignores(layer + name)
    for name in card.tensors:
        assert not card.ignores(name.replace("{i}", "3"))


def test_the_head_of_pythia_is_found_under_its_older_name(tmp_path: Path) -> None:
    import torch

    base, adapter, live = make_tiny(tmp_path, TINY["pythia"], modules_to_save=["lm_head"])
    with torch.no_grad():
        live.get_output_embeddings().weight.fill_(7)
    live.save_pretrained(adapter)
    assert (
        open_merged(base, adapter).rows("embed_out.weight", slice(0, 3)).tolist()
        == [[7.0] * 64] * 3
    )


def test_import_of_a_family_that_only_export_knows_is_refused(
    make: Callable[[str], tuple[Path, Path, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EDGEFT_HOME", str(tmp_path))
    gguf.convert(open_merged(make("gemma2")[0], None), tmp_path / "x.gguf", "f32", threads=1)
    with pytest.raises(FormatError, match="GGUF import does not read gemma2"):
        import_gguf(tmp_path / "x.gguf", "x")


def _variant(base: Path, folder: Path, config: dict[str, Any]) -> Path:
    """The same weights under another config.json."""
    (folder / "model.safetensors").symlink_to(base / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_every_card_is_held_to_a_model() -> None:
    import transformers

    tested = set()
    for tiny in TINY.values():
        architecture = re.sub("(Text)?Config", "ForCausalLM", tiny.config)
        assert hasattr(transformers, architecture)
        tested.add(models.card_for({"architectures": [architecture]}).family)
    assert {card.family for card in models.cards()} == tested
