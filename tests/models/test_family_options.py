"""config.json beyond the usual: older keys, absent keys, values that llama.cpp does not compute."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import Family

from edgeft import models
from edgeft.adapter.read import Weighted
from edgeft.converters.gguf import metadata
from edgeft.errors import FormatError
from edgeft.export.pipeline import ExportOptions, export
from edgeft.merge.view import open_merged
from edgeft.models.transforms import TRANSFORMS
from edgeft.runtimes.gguf import GGUFRuntime
from edgeft.runtimes.reference import ReferenceRuntime
from helpers import chatglm
from helpers.converting import convert
from helpers.families import DEEPSEEK, GLM, LONGROPE, TEXT, TINY, YARN, Tiny, make_tiny

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
def test_older_config_json_means_the_same(make: Family, about: str, tmp_path: Path) -> None:
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
    assert metadata.metadata(got) == metadata.metadata(want)
    wanted, found = metadata.rope_factors(want), metadata.rope_factors(got)
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
        metadata.metadata(SimpleNamespace(card=card, config=config))  # type: ignore[arg-type]
        for config in (whole, short)
    ]
    assert header[0] == header[1]


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("chatglm3-32k", {"multi_query_attention": False}),
    ("chatglm3-32k", {"original_rope": False}),
    ("chatglm3-32k", {"post_layer_norm": False}),
    ("chatglm3-32k", {"rmsnorm": False}),
    ("chatglm3-32k", {"apply_residual_connection_post_layernorm": True}),
    ("chatglm3-32k", {"kv_channels": 32}),
    ("chatglm3-32k", {"_name_or_path": "/models/mine"}),
    ("glm", {"head_dim": 32}),
    ("glm", {"hidden_act": "gelu"}),
    ("glm4", {"hidden_act": "gelu"}),
    ("deepseek2", {"norm_topk_prob": True}),
    ("deepseek2", {"scoring_func": "sigmoid"}),
    ("deepseek2", {"num_hidden_layers": 27}),
    ("deepseek2", {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}),
    ("deepseek2", {"rope_parameters": YARN | {"mscale": 1.0}}),
    ("deepseek2", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    ("deepseek2", {"rope_parameters": None, "rope_scaling": {
        "type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32}}),
    ("deepseek3", {"rope_interleave": False}),
    ("deepseek3", {"topk_method": "greedy"}),
    ("pythia", {"hidden_act": "relu"}),
    ("olmo3", {"rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 5000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}}),
    ("phi3", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0}}),
    ("gemma", {"use_bidirectional_attention": True}),
    ("gemma2", {"query_pre_attn_scalar": 16}),
    ("gemma2", {"attn_logit_softcapping": None}),
    ("gemma3", {"attn_logit_softcapping": 50.0}),
    ("gemma3", {"hidden_activation": "silu"}),
    ("gemma3", {"rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 5000.0},
        "sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}}}),
]  # fmt: skip
"""case, keys of config.json that llama.cpp would run as if they were not there"""


@pytest.mark.parametrize(("case", "keys"), REFUSED)
def test_what_llama_cpp_does_not_compute_is_refused(
    make: Family, case: str, keys: dict[str, Any]
) -> None:
    """By config.json alone: weights that do not fit it are refused before."""
    base, _, _ = make(case)
    text = models.text_model(json.loads((base / "config.json").read_text()) | keys)
    view: Any = SimpleNamespace(card=text.card, config=text.config)
    with pytest.raises(FormatError, match="llama.cpp does not |what its rope_ratio 50"):
        metadata.metadata(view)


def test_phi3_is_offered_as_far_as_its_window(make: Family, tmp_path: Path) -> None:
    base, _, _ = make("phi3")
    config = json.loads((base / "config.json").read_text())
    folder = _variant(base, tmp_path, config | {"sliding_window": 100})
    assert metadata.metadata(open_merged(folder, None))["phi3.context_length"] == 100
    assert metadata.metadata(open_merged(base, None))["phi3.context_length"] == 256


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


@pytest.mark.parametrize("layers", [3, 26, 27])
def test_deepseek_without_compressed_queries_has_any_number_of_layers(
    layers: int, tmp_path: Path
) -> None:
    """llama.cpp takes 26 and 27 layers for V2-Lite, and reads other keys then."""
    import torch

    few = {"q_lora_rank": None, "hidden_size": 32, "num_hidden_layers": layers}
    base, _, live = make_tiny(tmp_path, Tiny("DeepseekV2Config", DEEPSEEK | few))
    convert(open_merged(base, None), tmp_path / "x.gguf", "f32", threads=2)
    with GGUFRuntime(tmp_path / "x.gguf", context=128, exact=True) as model:
        ids = model.encode(TEXT)
        got = model.logits(ids)
    with torch.inference_mode(), live.disable_adapter():
        wanted = live(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(got - wanted).max() < 1e-3 * wanted.std()


@pytest.mark.parametrize("name", ["mla_keys", "mla_values"])
def test_any_rows_of_a_split_projection_are_rows_of_the_whole(name: str) -> None:
    heads, keys, values, rank = 3, 4, 5, 6
    config = {"num_attention_heads": heads, "qk_nope_head_dim": keys, "v_head_dim": values}
    joint = np.random.default_rng(0).normal(size=(heads * (keys + values), rank))
    joint = joint.astype(np.float32)
    of_heads = joint.reshape(heads, keys + values, rank)
    part = of_heads[:, :keys].swapaxes(1, 2) if name == "mla_keys" else of_heads[:, keys:]
    whole = part.reshape(-1, part.shape[-1])
    transform = TRANSFORMS[name]
    assert transform.shape(joint.shape, config) == part.shape
    for rows in (
        slice(None),
        slice(2, 11),
        slice(7, 8),
        np.array([0, 5, 6, 14]),
        np.array([13, 2]),
    ):
        values = joint[transform.source_rows(rows, joint.shape, config)]
        transformed = transform.apply(values, rows, joint.shape, config)
        np.testing.assert_array_equal(transformed, whole[rows])


def test_the_chatglm_of_the_tests_is_the_glm_of_transformers(
    make: Family,
) -> None:
    """Projections that one keeps together and the other apart, and all else by another name."""
    import safetensors.torch
    import torch
    import transformers

    base, _, _ = make("chatglm3-32k")
    options = json.loads((base / "config.json").read_text())
    stored = safetensors.torch.load_file(base / "model.safetensors")
    own = chatglm.make(options)
    own.load_state_dict(stored)
    weights: dict[str, Any] = {}
    for name, values in stored.items():
        if name.endswith("inv_freq"):
            continue
        for old, new in chatglm.TO_GLM.items():
            name = name.replace(old, new)
        if "query_key_value" not in name:
            weights[name] = values
            continue
        width, groups = options["kv_channels"], options["multi_query_group_num"]
        sizes = [options["num_attention_heads"] * width, groups * width, groups * width]
        for letter, part in zip("qkv", values.split(sizes), strict=True):
            weights[name.replace("query_key_value", f"{letter}_proj")] = part
    config = transformers.GlmConfig(
        vocab_size=len(weights["lm_head.weight"]), pad_token_id=0, **GLM,
        rms_norm_eps=options["layernorm_epsilon"], attention_bias=options["add_qkv_bias"],
        rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5,
                         "rope_theta": 10000.0 * options["rope_ratio"]},
    )  # fmt: skip
    glm = transformers.GlmForCausalLM(config).eval()
    glm.load_state_dict(weights)
    ids = torch.arange(50)[None]
    with torch.inference_mode():
        wanted, got = glm(ids).logits, own(ids).logits
    assert wanted.std() > 0.1
    assert (got - wanted).abs().max() < 1e-4 * wanted.std()


@pytest.mark.parametrize("case", ["mixtral", "gemma2", "deepseek2-lite", "chatglm2-32k"])
def test_export_compares_with_the_live_model_where_transformers_has_it(
    make: Family, case: str, tmp_path: Path
) -> None:
    base, adapter, _ = make(case)
    (made,) = export(
        ExportOptions(tmp_path, (Weighted(adapter),), str(base), quants=("f32",), threads=2)
    )
    facts = made.manifest.facts["parity"]
    if case.startswith("chatglm"):
        assert "transformers has no ChatGLMModel" in facts["live"]
        with pytest.raises(FormatError, match="transformers has no ChatGLMModel"):
            ReferenceRuntime(base)
    else:
        assert facts["live"]["prompts"] == 32
        assert facts["live"]["beta"] == pytest.approx(1, abs=0.02)
        assert facts["greedy"]["tokens"] > 0


def test_an_adapter_that_peft_cannot_load_is_not_compared(make: Family, tmp_path: Path) -> None:
    base, adapter, _ = make("deepseek3")  # peft takes its dense layers' names for the experts'
    made = export(ExportOptions(tmp_path, (Weighted(adapter),), str(base), quants=("f32",)))
    assert made[0].manifest.facts["parity"]["live"].startswith("not compared: peft cannot load")


def _variant(base: Path, folder: Path, config: dict[str, Any]) -> Path:
    """The same weights under another config.json."""
    (folder / "model.safetensors").symlink_to(base / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder
