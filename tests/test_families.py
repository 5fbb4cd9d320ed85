"""Every family: a tiny random model with a live adapter, held to transformers' logits.

The oracle is peft's live adapter on transformers' model in float32; what is held to it is the
float32 GGUF of edgeft's single pass, run by llama.cpp.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
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
from edgeft.errors import FormatError, InputError
from edgeft.export import ExportOptions, export
from edgeft.merge import open_merged
from edgeft.models.transforms import TRANSFORMS
from edgeft.records import Limits
from edgeft.runtimes.gguf import GGUFRuntime
from edgeft.runtimes.reference import ReferenceRuntime
from edgeft.train import sft

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
"""what makes peft take "gate_proj" for the experts', so that no linear layer of this name is adapted"""

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
        "n_group": 4, "topk_group": 2,
        "rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}}, MOE, MLP),
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
        config = chatglm.OPTIONS | {"padded_vocab_size": size} | tiny.options
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
]  # fmt: skip
"""case, keys of config.json that llama.cpp would run as if they were not there"""


@pytest.mark.parametrize(("case", "keys"), REFUSED)
def test_what_llama_cpp_would_ignore_is_refused(
    make: Callable[[str], tuple[Path, Path, Any]], case: str, keys: dict[str, Any], tmp_path: Path
) -> None:
    base, _, _ = make(case)
    config = json.loads((base / "config.json").read_text())
    changed = tmp_path / "base"
    shutil.copytree(base, changed)
    (changed / "config.json").write_text(json.dumps(config | keys))
    with pytest.raises(FormatError, match="llama.cpp does not compute|what its rope_ratio 50"):
        gguf.convert(open_merged(changed, None), tmp_path / "x.gguf", "f32", threads=1)


@pytest.mark.parametrize("layers", [3, 26, 27])
def test_deepseek_without_compressed_queries_has_any_number_of_layers(
    layers: int, tmp_path: Path
) -> None:
    """llama.cpp takes 26 and 27 layers for V2-Lite, and reads other keys then."""
    import torch

    few = {"q_lora_rank": None, "hidden_size": 32, "num_hidden_layers": layers}
    base, _, live = make_tiny(tmp_path, Tiny("DeepseekV2Config", DEEPSEEK | few))
    gguf.convert(open_merged(base, None), tmp_path / "x.gguf", "f32", threads=2)
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
        taken = transform.take(lambda wanted: joint[wanted], rows, joint.shape, config)
        np.testing.assert_array_equal(taken, whole[rows])


def test_the_chatglm_of_the_tests_is_the_glm_of_transformers(
    make: Callable[[str], tuple[Path, Path, Any]],
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


@pytest.mark.parametrize(("case", "queries"), [
    ("deepseek2", {"q_a_proj", "q_b_proj"}), ("deepseek2-lite", {"q_proj"})])  # fmt: skip
def test_training_adapts_the_layers_that_this_size_has(
    make: Callable[[str], tuple[Path, Path, Any]], case: str, queries: set[str]
) -> None:
    _, _, live = make(case)
    card = models.card_for({"architectures": ["DeepseekV2ForCausalLM"]})
    always = {"kv_a_proj_with_mqa", "kv_b_proj", "o_proj"}
    assert set(sft._targets(live, (), card)) == queries | always
    with pytest.raises(InputError, match="no modules named up"):
        sft._targets(live, ("o_proj", "up"), card)


@pytest.mark.parametrize("case", ["mixtral", "deepseek3", "chatglm2-32k"])
def test_export_compares_with_transformers_where_it_has_the_model(
    make: Callable[[str], tuple[Path, Path, Any]], case: str, tmp_path: Path
) -> None:
    base, adapter, _ = make(case)
    (made,) = export(ExportOptions(tmp_path, adapter, str(base), quants=("f32",), threads=2))
    greedy = made.manifest.facts["parity"]["greedy"]
    if case.startswith("chatglm"):
        assert "transformers has no ChatGLMModel" in greedy
        with pytest.raises(FormatError, match="transformers has no ChatGLMModel"):
            ReferenceRuntime(base)
    else:
        assert greedy["tokens"] > 0


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
