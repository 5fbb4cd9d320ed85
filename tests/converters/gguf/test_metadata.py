"""What the header says for each config.json; the oracle is transformers' reading of the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft import models
from edgeft.converters.gguf.metadata import metadata, rope_factors
from edgeft.errors import FormatError
from edgeft.merge.view import open_merged
from edgeft.runtimes.gguf import GGUFRuntime
from edgeft.weights import text_base
from edgeft.weights.checkpoint import Spec, write_safetensors
from edgeft.weights.text_base import open_base
from helpers.converting import convert

Config = dict[str, Any]
Header = Callable[[Config], dict[str, Any]]

SCALED: dict[str, Config] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "yarn-of-all": {"rope_type": "yarn", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64},
}  # fmt: skip
ARCHITECTURES = {
    architecture: card for card in models.cards() for architecture in card.architectures
}


@pytest.fixture
def header(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Header:
    """The header of a config.json; the weights beside it are of no family in particular."""
    monkeypatch.setattr(text_base, "_check_shapes", lambda *args: None)
    base = tmp_path / "header"
    shutil.copytree(tiny_base, base)
    arrays = dict(open_base(tiny_base).tensors())
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"]  # whether it is tied or not
    specs = [Spec(name, "F32", values.shape) for name, values in arrays.items()]
    write_safetensors(base / "model.safetensors", specs, arrays.values())

    def read(config: Config) -> dict[str, Any]:
        (base / "config.json").write_text(json.dumps(config))
        merged = open_merged(base, None)
        factors = {name: values.tolist() for name, values in rope_factors(merged).items()}
        return metadata(merged) | factors

    return read


def saved(model_class: str, **options: Any) -> Config:
    """config.json as transformers saves it."""
    import transformers

    config: Config = json.loads(
        getattr(transformers, f"{model_class}Config")(**options).to_json_string()
    )
    return config | {"architectures": [f"{model_class}ForCausalLM"]}


def as_of_transformers_4(config: Config) -> Config:
    old = {key: value for key, value in config.items() if key != "layer_types"}
    rope = dict(old.pop("rope_parameters"))
    old["rope_theta"] = rope.pop("rope_theta")
    rope_type = rope.pop("rope_type")
    if rope_type != "default":
        key = "rope_type" if rope_type == "llama3" else "type"
        old["rope_scaling"] = rope | {key: rope_type}
    old["torch_dtype"] = old.pop("dtype", "float32")
    if config["model_type"] == "qwen3_moe":
        old["num_experts"] = old.pop("num_local_experts")
    return old


@pytest.mark.parametrize("rope", SCALED)
@pytest.mark.parametrize(
    "model_class",
    ["Llama", "Mistral", "Mixtral", "Qwen2", "Qwen2Moe", "Qwen3", "Qwen3Moe", "Olmoe"],
)
def test_a_config_of_transformers_4_gives_the_same_header(
    header: Header, model_class: str, rope: str, tmp_path: Path
) -> None:
    import transformers

    more = {"norm_topk_prob": True} if model_class == "Qwen3Moe" else {}
    new = saved(model_class, rope_parameters=SCALED[rope] | {"rope_theta": 20000.0}, **more)
    old = as_of_transformers_4(new)
    (tmp_path / "config.json").write_text(json.dumps(old))
    as_read = transformers.AutoConfig.from_pretrained(tmp_path)
    as_read.rope_parameters.pop("type", None)
    assert as_read.rope_parameters == new["rope_parameters"], "they are not the same model"
    if rope == "llama3" and model_class not in ("Llama", "Mistral", "Mixtral"):
        for config in (new, old):
            with pytest.raises(FormatError, match='with rope_type = "llama3"'):
                header(config)
        return
    keys = header(new)
    assert header(old) == keys
    arch = ARCHITECTURES[f"{model_class}ForCausalLM"].gguf_arch
    assert keys[f"{arch}.rope.freq_base"] == 20000.0
    assert keys.get(f"{arch}.rope.scaling.factor") == (
        None if rope == "llama3" else SCALED[rope].get("factor")
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_defaults_are_those_of_transformers(architecture: str) -> None:
    import transformers

    model = getattr(transformers, architecture, None)
    if model is None:
        pytest.skip("transformers does not have it")
    config = model.config_class()
    rope = getattr(config, "rope_parameters", None) or {}
    # transformers 5 turns these into other keys at once: held to it by tests/models/test_families.py
    older = ("sliding_window_pattern", "rope_theta", "rope_local_base_freq", "rotary_pct")
    for key, value in ARCHITECTURES[architecture].defaults.items():
        if key in older and not hasattr(config, key) and key not in rope:
            continue
        as_declared = getattr(model.config_class, key, None)  # before other keys change it
        assert value in (as_declared, getattr(config, key, None), rope.get(key)), key


def test_yarn_stretches_the_context(header: Header) -> None:
    """As Qwen2.5's model cards tell to switch it on, over an unchanged max_position_embeddings."""
    scaling = {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}
    config = as_of_transformers_4(saved("Qwen2", max_position_embeddings=32768))
    keys = header(config | {"rope_scaling": scaling})
    assert keys["qwen2.context_length"] == 131072
    assert keys["qwen2.rope.scaling.original_context_length"] == 32768
    assert "qwen2.rope.scaling.attn_factor" not in keys


@pytest.mark.parametrize(
    ("model_class", "options", "length"),
    [
        ("Mistral", {"sliding_window": 100}, 100),
        ("Mistral", {"sliding_window": 4096}, 512),
        ("Mistral", {"sliding_window": None}, 512),
        ("Mixtral", {"sliding_window": 100}, 100),
        ("Mixtral", {}, 512),
        ("Qwen2", {"sliding_window": 100}, 512),
        ("Qwen2", {"sliding_window": 100, "use_sliding_window": True}, 512),
        ("Qwen2", {"sliding_window": 100, "use_sliding_window": True, "max_window_layers": 1}, 100),
        ("Qwen3", {"sliding_window": 100, "use_sliding_window": True, "max_window_layers": 1}, 100),
        ("Qwen2Moe", {"sliding_window": 100, "use_sliding_window": True}, 100),
        ("Qwen3Moe", {"sliding_window": 100, "use_sliding_window": True}, 100),
    ],
)
def test_a_window_limits_the_context(
    header: Header, model_class: str, options: Config, length: int
) -> None:
    more = {"norm_topk_prob": True} if model_class == "Qwen3Moe" else {}
    keys = header(
        saved(model_class, num_hidden_layers=2, max_position_embeddings=512, **options, **more)
    )
    assert keys[f"{ARCHITECTURES[f'{model_class}ForCausalLM'].gguf_arch}.context_length"] == length


def test_a_llama_ignores_sliding_window(header: Header) -> None:
    config = saved("Llama", max_position_embeddings=512)
    assert header(config | {"sliding_window": 100})["llama.context_length"] == 512


def test_a_config_without_a_window_has_the_full_context(header: Header) -> None:
    config = saved("Mistral")
    del config["sliding_window"]
    assert header(config)["llama.context_length"] == 4096


@pytest.mark.parametrize(
    ("model_class", "options"),
    [
        ("Mistral", {"sliding_window": 32}),
        ("Mixtral", {"sliding_window": 32, "num_local_experts": 4}),
        ("Qwen2", {"sliding_window": 32, "use_sliding_window": True, "max_window_layers": 1}),
    ],
)
def test_a_model_with_a_window_equals_transformers_within_its_context(
    model_class: str, options: Config, tmp_path: Path
) -> None:
    import torch
    import transformers

    from helpers.tiny import make_tokenizer

    size, _ = make_tokenizer(tmp_path / "base")
    config = getattr(transformers, f"{model_class}Config")(
        vocab_size=size, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, **options
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    model.save_pretrained(tmp_path / "base")
    convert(open_merged(tmp_path / "base", None), tmp_path / "x.gguf", "f32", threads=1)
    ids = list(range(60, 100))
    with GGUFRuntime(tmp_path / "x.gguf") as here:
        length = here.context
    with GGUFRuntime(tmp_path / "x.gguf", context=64, exact=True) as here:
        got = here.logits(ids)
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    away = np.abs(got - expected).max(axis=1) / expected.std()
    assert length == 32
    assert away[:length].max() < 1e-3
    assert away[length] > 1e-2, "the limit is too low"


@pytest.mark.parametrize(
    ("model_class", "options", "says"),
    [
        ("Llama", {"hidden_act": "relu"}, 'hidden_act = "relu"'),
        ("Llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ("Llama", {"rope_parameters": SCALED["yarn"] | {"beta_fast": 16}}, "ramp"),
        ("Mistral", {"rope_parameters": SCALED["yarn"] | {"truncate": False}}, "ramp"),
        ("Qwen2", {"head_dim": 128, "hidden_size": 64, "num_attention_heads": 4,
                   "num_key_value_heads": 4}, "head_dim = 128"),
        ("Qwen2Moe", {"norm_topk_prob": True}, "norm_topk_prob = true"),
        ("Qwen2Moe", {"decoder_sparse_step": 2}, "decoder_sparse_step = 2"),
        ("Qwen2Moe", {"mlp_only_layers": [0]}, r"mlp_only_layers = \[0\]"),
        ("Qwen2Moe", {"tie_word_embeddings": True}, "tie_word_embeddings = true"),
        ("Qwen3Moe", {}, "norm_topk_prob = false"),
        ("SmolLM3", {"no_rope_layer_interval": 3}, "every_fourth_unrotated = false"),
        ("SmolLM3", {"num_hidden_layers": 2, "no_rope_layers": [1, 0]}, "every_fourth_unrotated"),
        ("Olmoe", {"norm_topk_prob": True}, "norm_topk_prob = true"),
        ("Olmoe", {"clip_qkv": 8.0}, "clip_qkv = 8.0"),
        ("Olmoe", {"num_key_value_heads": 8}, "num_key_value_heads = 8"),
        ("Olmoe", {"tie_word_embeddings": True}, "tie_word_embeddings = true"),
    ],
)  # fmt: skip
def test_settings_that_llama_cpp_does_not_compute_are_refused(
    header: Header, model_class: str, options: Config, says: str
) -> None:
    with pytest.raises(FormatError, match=says) as refused:
        header(saved(model_class, **options))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("model_class", ["Qwen3", "Qwen3Moe", "SmolLM3", "Olmoe"])
def test_a_bias_that_llama_cpp_does_not_read_is_refused(model_class: str) -> None:
    bias = "model.layers.0.self_attn.o_proj.bias"
    assert ARCHITECTURES[f"{model_class}ForCausalLM"].gguf_names(bias) == ((), None)
