"""Every kind of adapter that peft saves, held to what peft's live adapter computes."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft import store
from edgeft.adapter.read import Weighted
from edgeft.errors import AdapterError, FormatError, ProofError
from edgeft.merge.landing import LandingProof
from edgeft.merge.view import open_merged
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.weights.checkpoint import Checkpoint, Spec, write_safetensors
from helpers.adapters import (
    ATTENTION,
    IDS,
    assert_live,
    assert_merged,
    edit,
    load,
    logits,
    make_adapter,
    reload,
)
from helpers.converting import convert
from helpers.families import MOE, SMALL, Tiny, make_tiny
from helpers.tiny import make_base, make_tokenizer

TIED = SMALL | {"tie_word_embeddings": True}
BIASED = SMALL | {"attention_bias": True, "mlp_bias": True}

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    import torch
    import transformers

    options = {"plain": SMALL, "tied": TIED, "biased": BIASED}
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind) / "base"
            size, end = make_tokenizer(folder)
            torch.manual_seed(0)
            config = transformers.LlamaConfig(
                vocab_size=size, eos_token_id=end, bos_token_id=end - 1, **options[kind]
            )
            model = transformers.AutoModelForCausalLM.from_config(config)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.2)
            model.save_pretrained(folder)
            made[kind] = folder
        return made[kind]

    return make


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "rslora": ("plain", {"use_rslora": True}),
    "patterns": ("plain", {
        "target_modules": [*ATTENTION, "up_proj"],
        "rank_pattern": {"^model.layers.0.self_attn.q_proj": 2, r".*\.1\.mlp\.up_proj": 6},
        "alpha_pattern": {"self_attn.v_proj": 3, "attn.k_proj": 50, "1.self_attn.[oq]_proj": 5},
    }),
    "layers": ("plain", {"layers_to_transform": [1], "exclude_modules": ["o_proj"]}),
    "dora": ("plain", {"use_dora": True, "target_modules": [*ATTENTION, "down_proj"]}),
    "dora-rslora": ("plain", {"use_dora": True, "use_rslora": True}),
    "bias-all": ("biased", {"bias": "all"}),
    "bias-lora-only": ("biased", {"bias": "lora_only"}),
    "lora-bias": ("biased", {"lora_bias": True}),
    "embedding": ("plain", {"target_modules": [*ATTENTION, "embed_tokens", "lm_head"]}),
    "dora-embedding": ("plain", {"use_dora": True, "target_modules": ["q_proj", "embed_tokens"]}),
    "modules-to-save": ("plain", {"modules_to_save": ["lm_head", "embed_tokens", "norm"]}),
    "a-whole-block": ("biased", {"modules_to_save": ["mlp"]}),
    "tokens": ("plain", {"trainable_token_indices": [7, 3, 40]}),
    "tokens-by-name": ("plain", {"trainable_token_indices": {"lm_head": [5, 4]}}),
    "orthogonal": ("plain", {"init_lora_weights": "orthogonal"}),
    "gaussian": ("plain", {"init_lora_weights": "gaussian"}),
    "mica": ("plain", {"init_lora_weights": "mica"}),
    "weights": ("plain", {"target_modules": [], "target_parameters": ["mlp.up_proj.weight",
                "0.self_attn.q_proj.weight"], "alpha_pattern": {"q_proj.weight": 11}}),
}  # fmt: skip
"""name -> (base, what LoraConfig gets)"""


@pytest.mark.parametrize("variant", VARIANTS)
def test_merged_weights_are_those_of_peft(
    bases: Callable[[str], Path], tmp_path: Path, variant: str
) -> None:
    kind, lora = VARIANTS[variant]
    adapter = make_adapter(bases(kind), tmp_path / "adapter", **lora)
    merged = open_merged(bases(kind), adapter)
    assert_merged(merged, bases(kind), adapter)
    assert_live(merged, reload(bases(kind), adapter), tmp_path / "hf")


TIES: dict[str, tuple[dict[str, Any], bool]] = {
    "lora-in": ({"target_modules": ["q_proj", "embed_tokens"]}, False),
    "lora-out": ({"target_modules": ["q_proj", "lm_head"]}, False),
    "lora-both": ({"target_modules": ["q_proj", "lm_head", "embed_tokens"]}, False),
    "lora-tied": ({"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}, True),
    "dora-in": ({"target_modules": ["embed_tokens"], "use_dora": True}, False),
    "saved-in": ({"modules_to_save": ["embed_tokens"]}, False),
    "saved-out": ({"modules_to_save": ["lm_head"]}, False),
    "saved-both": ({"modules_to_save": ["lm_head", "embed_tokens"]}, False),
    "saved-tied": ({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, True),
    "lora-out-saved-in": ({"target_modules": ["lm_head"], "modules_to_save": ["embed_tokens"]}, False),
    "tokens": ({"trainable_token_indices": [7, 3, 40]}, True),
    "tokens-out": ({"trainable_token_indices": {"lm_head": [7, 3]}}, False),
    "tokens-both": ({"trainable_token_indices": {"lm_head": [7, 3], "embed_tokens": [7, 3]}}, True),
    "tokens-differ": ({"trainable_token_indices": {"lm_head": [7], "embed_tokens": [3]}}, False),
    "neither": ({}, True),
}  # fmt: skip
"""name -> (what LoraConfig gets, whether embedding and output layer stay one weight)"""


@pytest.mark.parametrize("variant", TIES)
def test_tied_embeddings_behave_as_in_the_live_adapter(
    bases: Callable[[str], Path], tmp_path: Path, variant: str
) -> None:
    lora, tied = TIES[variant]
    base = bases("tied")
    adapter = make_adapter(base, tmp_path / "adapter", **lora)
    merged = open_merged(base, adapter)
    assert merged.tied == tied
    assert ("lm_head.weight" in merged.shapes) != tied
    assert bool(merged.notes) != tied
    assert_live(merged, reload(base, adapter), tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["tie_word_embeddings"] == tied


def add_tokens(base: Path, folder: Path, count: int) -> int:
    """The base's tokenizer with more tokens, as trl saves it with an adapter; the new size."""
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    first = max(entry["id"] for entry in tokenizer["added_tokens"]) + 1
    for i in range(count):
        tokenizer["added_tokens"].append(
            tokenizer["added_tokens"][0] | {"id": first + i, "content": f"<|extra_{i}|>"}
        )
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    template = "{% for m in messages %}<|extra_0|>{{ m['content'] }}{% endfor %}"
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings | {"chat_template": template})
    )
    return first + count


RESIZED: dict[str, tuple[str, dict[str, Any], bool]] = {
    "saved": ("plain", {"modules_to_save": ["lm_head", "embed_tokens"]}, False),
    "not-trained": ("plain", {}, False),
    "lora": ("plain", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}, False),
    "dora": ("plain", {"target_modules": ["embed_tokens", "lm_head"], "use_dora": True}, False),
    "tokens": ("plain", {"trainable_token_indices": [265, 266, 2]}, False),
    "tied-saved": ("tied", {"modules_to_save": ["lm_head", "embed_tokens"]}, False),
    "tied-saved-in": ("tied", {"modules_to_save": ["embed_tokens"]}, False),
    "tied-not-trained": ("tied", {}, True),
    "tied-lora": ("tied", {"target_modules": ["q_proj", "embed_tokens"]}, False),
    "tied-tokens": ("tied", {"trainable_token_indices": [265, 266, 2]}, True),
    "tied-one": ("tied", {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, True),
}  # fmt: skip


@pytest.mark.parametrize("variant", RESIZED)
def test_resized_embeddings_and_the_adapters_tokenizer(
    bases: Callable[[str], Path], tmp_path: Path, variant: str
) -> None:
    import transformers

    kind, lora, tied = RESIZED[variant]
    base, folder = bases(kind), tmp_path / "adapter"
    rows = add_tokens(base, folder, 5)
    make_adapter(base, folder, rows=rows, **lora)
    merged = open_merged(base, folder)
    assert merged.shapes["model.embed_tokens.weight"][0] == rows == merged.config["vocab_size"]
    assert merged.tied == tied
    assert f"the adapter's embeddings have {rows} rows, the base's 265" in merged.notes
    live = reload(base, folder, rows)
    assert_live(merged, live, tmp_path / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer.convert_tokens_to_ids("<|extra_4|>") == rows - 1
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["vocab_size"] == rows
    stops = json.loads((tmp_path / "hf" / "generation_config.json").read_text())["eos_token_id"]
    eos = json.loads((base / "generation_config.json").read_text())["eos_token_id"]
    assert stops == [eos, 265], (
        "the adapter's template has no end of turn: the next turn begins there"
    )


@pytest.mark.parametrize("variant", ["tied-saved", "tied-lora", "tied-tokens"])
def test_gguf_of_resized_and_untied_embeddings(
    bases: Callable[[str], Path], tmp_path: Path, variant: str
) -> None:
    from edgeft.benchmarks.fidelity.parity import check_greedy, check_tokens
    from edgeft.runtimes.gguf import GGUFRuntime
    from edgeft.runtimes.reference import ReferenceRuntime

    kind, lora, _ = RESIZED[variant]
    base, folder = bases(kind), tmp_path / "adapter"
    rows = add_tokens(base, folder, 5)
    make_adapter(base, folder, rows=rows, **lora)
    merged = open_merged(base, folder)
    convert(merged, tmp_path / "x.gguf", "f32", threads=1).proof()
    wanted = logits(reload(base, folder, rows))
    weights = ((name, merged.tensor(name)) for name in merged.shapes)
    with GGUFRuntime(tmp_path / "x.gguf", context=256, exact=True) as model:
        np.testing.assert_allclose(model.logits(IDS), wanted, rtol=0, atol=1e-3 * wanted.std())
        check_tokens(model, merged.tokenizer)
        assert "extra_0" in model.chat.source
        assert model.encode("<|extra_1|>") == [rows - 4]
        with ReferenceRuntime(base, 1, weights=weights, config=merged.config,
                              tokenizer=merged.tokenizer) as reference:  # fmt: skip
            np.testing.assert_allclose(reference.logits(IDS), wanted, rtol=0, atol=1e-4)
            check_greedy(model, reference, ["lamp", "on"])


def test_missing_tokenizer_files_come_from_the_base(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = bases("plain")
    adapter = make_adapter(base, tmp_path / "adapter")
    assert open_merged(base, adapter).tokenizer == base
    shutil.copyfile(base / "tokenizer.json", adapter / "tokenizer.json")
    (adapter / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    folder = open_merged(base, adapter).tokenizer
    chat = ChatTemplate.from_folder(folder)
    assert chat.source == ChatTemplate.from_folder(base).source
    assert chat.stops == ("<|endoftext|>", "<|im_end|>")
    assert not (adapter / "chat_template.jinja").exists()
    add_tokens(base, tmp_path / "other", 1)
    make_adapter(base, tmp_path / "other")
    with pytest.raises(AdapterError, match=r"adapter and .*other have different tokenizers"):
        open_merged(base, [Weighted(adapter), Weighted(tmp_path / "other")])


KEPT: dict[str, dict[str, str]] = {
    "chat_template.jinja": {"chat_template.jinja": "own"},
    "chat_template.json": {"chat_template.json": '{"chat_template": "own"}'},
    "one of more": {"additional_chat_templates/default.jinja": "own",
                    "additional_chat_templates/a.jinja": "a"},
    "configuration": {"tokenizer_config.json": '{"chat_template": "own"}'},
    "by name": {"tokenizer_config.json": json.dumps({"chat_template": [
        {"name": "rag", "template": "rag"}, {"name": "default", "template": "own"}]})},
    "nowhere": {},
    "an empty file": {"chat_template.jinja": ""},
}  # fmt: skip


@pytest.mark.parametrize("place", KEPT)
@pytest.mark.parametrize("whose", ["adapter", "base"])
def test_chat_template_is_kept(tmp_path: Path, place: str, whose: str) -> None:
    """An adapter's goes before the base's, and an exported folder has the one that was merged."""
    base, adapter = make_base(tmp_path / "base"), tmp_path / "adapter"
    base_config = json.loads((base / "tokenizer_config.json").read_text())
    make_adapter(base, adapter)
    if whose == "adapter":
        shutil.copyfile(base / "tokenizer.json", adapter / "tokenizer.json")
    else:
        del base_config["chat_template"]
    for name, text in KEPT[place].items():
        file = (adapter if whose == "adapter" else base) / name
        file.parent.mkdir(exist_ok=True)
        if whose == "base" and name == "tokenizer_config.json":
            base_config |= json.loads(text)
        else:
            file.write_text(text)
    (base / "tokenizer_config.json").write_text(json.dumps(base_config))
    (base / "tokenization_chatglm.py").write_text("raise SystemExit")
    wanted = "own" if "own" in str(KEPT[place]) else ChatTemplate.from_folder(base).source
    merged = open_merged(base, adapter)
    assert ChatTemplate.from_folder(merged.tokenizer).source == wanted
    (tmp_path / "hf").mkdir()
    convert(merged, tmp_path / "hf", "f32", format="hf", threads=1)
    assert ChatTemplate.from_folder(tmp_path / "hf").source == wanted
    for name, text in KEPT[place].items():
        if "additional" in name:
            assert (tmp_path / "hf" / name).read_text() == text
    assert not list((tmp_path / "hf").rglob("*.py"))
    if place == "an empty file" and whose == "adapter":
        assert (adapter / "chat_template.jinja").read_text() == "", "the adapter is left alone"


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_half_precision_adapters(bases: Callable[[str], Path], tmp_path: Path, dtype: str) -> None:
    base = bases("plain")
    lora = {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"]}
    adapter = make_adapter(base, tmp_path / "adapter", use_dora=True, **lora)
    edit(adapter, dtype=dtype)
    assert_merged(open_merged(base, adapter), base, adapter)


def test_smaller_and_unfitting_vocabulary(bases: Callable[[str], Path], tmp_path: Path) -> None:
    base = bases("plain")
    smaller = make_adapter(base, tmp_path / "smaller", rows=200)
    assert open_merged(base, smaller).shapes["lm_head.weight"] == (200, 64)
    add_tokens(base, tmp_path / "lost", 2)
    lost = make_adapter(base, tmp_path / "lost")
    with pytest.raises(AdapterError, match=r"has token 266, the embeddings have 265 rows"):
        open_merged(base, lost)
    add_tokens(base, tmp_path / "one", 2)
    one = make_adapter(base, tmp_path / "one", rows=267, modules_to_save=["embed_tokens"])
    edit(one, drop="lm_head")
    with pytest.raises(AdapterError, match=r"embed_tokens.weight has 267 rows, lm_head.weight has"):
        open_merged(base, one)


MIXTRAL = SMALL | {"num_local_experts": 4, "num_experts_per_tok": 2}

EXPERTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "both": ({}, {"target_parameters": [*MOE]}),
    "one-of-them": ({}, {"target_parameters": ["experts.down_proj"]}),
    "one-layer": ({}, {"target_parameters": ["layers.1.mlp.experts.gate_up_proj"]}),
    "router": ({}, {"target_parameters": ["mlp.gate.weight", *MOE]}),
    "patterns": ({}, {"target_parameters": [*MOE], "use_rslora": True,
                      "rank_pattern": {r".*\.gate_up_proj": 3},
                      "alpha_pattern": {"experts.down_proj": 20, "0.mlp.experts": 99}}),
    "one-expert": ({"num_local_experts": 1, "num_experts_per_tok": 1},
                   {"target_parameters": [*MOE]}),
    "saved": ({}, {"modules_to_save": ["mlp.experts", "mlp.gate"]}),
}  # fmt: skip


@pytest.mark.parametrize("variant", EXPERTS)
def test_adapters_of_experts(tmp_path: Path, variant: str) -> None:
    options, lora = EXPERTS[variant]
    base, _, _ = make_tiny(tmp_path, Tiny("MixtralConfig", MIXTRAL | options))
    adapter = make_adapter(base, tmp_path / "own", **lora)
    merged = open_merged(base, adapter)
    assert_live(merged, reload(base, adapter), tmp_path / "hf")
    wanted = reload(base, adapter).merge_and_unload().state_dict()
    for layer in range(2):
        fused = wanted[f"model.layers.{layer}.mlp.experts.gate_up_proj"].numpy()
        for expert in range(fused.shape[0]):
            own = f"model.layers.{layer}.block_sparse_moe.experts.{expert}."
            got = np.concatenate([merged.tensor(f"{own}{w}.weight") for w in ("w1", "w3")])
            np.testing.assert_allclose(got, fused[expert], rtol=0, atol=2e-6)


def test_missing_experts_are_refused(tmp_path: Path) -> None:
    base, _, _ = make_tiny(tmp_path, Tiny("MixtralConfig", MIXTRAL))
    one, two = (
        make_adapter(base, tmp_path / name, target_parameters=[*MOE]) for name in ("one", "two")
    )
    edit(one, drop="layers.1.mlp.experts.base_layer")
    with pytest.raises(AdapterError, match=r"lacks model.layers.1.mlp.experts.gate_up_proj"):
        open_merged(base, one)
    parts = {f"{layer}.mlp.experts.lora_{x}": (lambda v: v[:-4]) if x == "A" else lambda v: v[:, :-4]
             for layer in (0, 1) for x in "AB"}  # fmt: skip
    edit(two, **parts)
    with pytest.raises(
        AdapterError, match=r"experts.down_proj has rank 3, .* says 4|for 4 experts"
    ):
        open_merged(base, two)


def test_sum_that_peft_does_not_support_is_refused(tmp_path: Path) -> None:
    """Of fused experts; their sum is made here all the same, without a live model beside it."""
    from edgeft.runtimes.reference import ReferenceRuntime

    base, _, _ = make_tiny(tmp_path, Tiny("MixtralConfig", MIXTRAL))
    both = [
        (make_adapter(base, tmp_path / name, target_parameters=[*MOE]), weight)
        for name, weight in (("one", 1.0), ("two", 0.5))
    ]
    with pytest.raises(FormatError, match=r"peft cannot load the sum of .*one, .*two: ") as caught:
        ReferenceRuntime(base, adapters=both)
    assert "\n" not in str(caught.value)
    open_merged(base, [Weighted(*pair) for pair in both])


def old_adapter(base: Path, adapter: Path, **config: Any) -> Path:
    """As transformers 4 made it, where each expert was a module with three linear layers."""
    draw = np.random.default_rng(0)
    tensors = {}
    for name, info in Checkpoint(base).tensors.items():
        if "block_sparse_moe" in name:
            out, width = info.shape
            module = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{module}.lora_A.weight"] = draw.normal(0, 0.2, (4, width))
            tensors[f"{module}.lora_B.weight"] = draw.normal(0, 0.2, (out, 4))
    adapter.mkdir()
    specs = [Spec(name, "F32", array.shape) for name, array in tensors.items()]
    arrays = [array.astype(np.float32) for array in tensors.values()]
    write_safetensors(adapter / "adapter_model.safetensors", specs, arrays)
    (adapter / "adapter_config.json").write_text(json.dumps({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 6,
        "target_modules": ["w1", "w2", "w3", "gate"], "base_model_name_or_path": str(base), **config,
    }))  # fmt: skip
    return adapter


def test_adapter_of_experts_as_modules(tmp_path: Path) -> None:
    base, _, _ = make_tiny(tmp_path, Tiny("MixtralConfig", MIXTRAL))
    adapter = old_adapter(base, tmp_path / "old")
    assert_live(open_merged(base, adapter), reload(base, adapter), tmp_path / "hf")
    edit(adapter, drop="experts.2.w3")
    with pytest.raises(
        AdapterError, match=r"lacks .*layers.0.block_sparse_moe.experts.2.w3.weight"
    ):
        open_merged(base, adapter)
    chosen = old_adapter(base, tmp_path / "chosen", target_modules=["experts.0.w1", "experts.1.w1"])
    edit(chosen, drop="experts.2.")
    open_merged(base, chosen)


@pytest.mark.parametrize("square", [False, True])
def test_weight_stored_as_in_by_out(
    tmp_path: Path, square: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPT-2's Conv1D, of which edgeft has no card; the output layer, which is none, comes last."""
    import transformers

    from edgeft import models

    card = models.Card(
        "gpt2", "GPT-2", ("GPT2LMHeadModel",), "gpt2", ("hf",), (),
        {"transformer.wte.weight": "token_embd.weight", "lm_head.weight": "output.weight"}, {},
    )  # fmt: skip
    monkeypatch.setattr(
        importlib.import_module("edgeft.models.text_model"), "cards", lambda: (card,)
    )
    base = tmp_path / "base"
    size, end = make_tokenizer(base)
    config = transformers.GPT2Config(
        vocab_size=size, n_embd=32, n_layer=2, n_head=2, n_positions=64, eos_token_id=end,
        bos_token_id=end, tie_word_embeddings=False,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(base)
    modules = ["attn.c_proj"] if square else ["c_attn", "c_proj", "c_fc", "lm_head", "wte"]
    for i, lora in enumerate(({}, {"use_dora": True}, {"lora_bias": True})):
        if "lora_bias" in lora:
            lora["target_modules"] = modules[:1]  # not of embeddings
        lora = {"target_modules": modules, "fan_in_fan_out": True} | lora
        adapter = make_adapter(base, tmp_path / f"adapter{i}", **lora)
        merged = open_merged(base, adapter)
        assert_merged(merged, base, adapter)
        assert_live(merged, reload(base, adapter), tmp_path / f"hf{i}")


def test_dora_on_a_4bit_base_uses_its_norms(bases: Callable[[str], Path], tmp_path: Path) -> None:
    import peft
    import torch

    base = bases("plain")
    adapter = make_adapter(base, tmp_path / "adapter", use_dora=True)
    seen = open_merged(base, None, "nf4")
    model = load(base)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(seen.tensor(name)))
    wanted = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    merged = open_merged(base, adapter, "nf4")
    for name in merged.shapes:
        np.testing.assert_allclose(merged.tensor(name), wanted[name].numpy(), rtol=0, atol=2e-6)


def test_converted_pissa_adapter_is_plain_lora(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    import peft
    import torch

    base, start, out = bases("plain"), tmp_path / "start", tmp_path / "plain"
    options = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=ATTENTION,
        task_type="CAUSAL_LM",
        init_lora_weights="pissa",
    )
    live = peft.get_peft_model(load(base), options).eval()
    live.peft_config["default"].init_lora_weights = True
    live.save_pretrained(start)
    live.peft_config["default"].init_lora_weights = "pissa"
    with torch.no_grad():
        for parameter in live.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    wanted = logits(live)
    live.save_pretrained(tmp_path / "mutated")
    with pytest.raises(AdapterError, match=r"changed base .init_lora_weights=pissa.*conversion"):
        open_merged(base, tmp_path / "mutated")
    live.save_pretrained(out, path_initial_model_for_weight_conversion=start)
    merged = open_merged(base, out)
    (tmp_path / "hf").mkdir()
    convert(merged, tmp_path / "hf", "f32", format="hf", threads=1)
    np.testing.assert_allclose(logits(load(tmp_path / "hf")), wanted, rtol=0, atol=1e-3)


def test_weighted_sum_is_that_of_peft(bases: Callable[[str], Path], tmp_path: Path) -> None:
    base = bases("plain")
    lora = {"target_modules": [*ATTENTION, "embed_tokens"]}
    one = make_adapter(base, tmp_path / "one", **lora)
    two = make_adapter(base, tmp_path / "two", r=2, use_rslora=True, **lora)
    live = reload(base, one)
    live.load_adapter(two, "two")
    live.add_weighted_adapter(["default", "two"], [1.0, -0.5], "sum", combination_type="cat")
    live.set_adapter("sum")
    merged = open_merged(base, [Weighted(one), Weighted(two, -0.5)])
    assert_live(merged, live, tmp_path / "hf")
    twice = open_merged(base, [Weighted(one), Weighted(one)])
    alone = open_merged(base, [Weighted(one, 2.0)])
    name = "model.layers.0.self_attn.q_proj.weight"
    np.testing.assert_allclose(twice.tensor(name), alone.tensor(name), rtol=0, atol=2e-6)


def test_undefined_sums_are_refused(bases: Callable[[str], Path], tmp_path: Path) -> None:
    base = bases("plain")
    plain = make_adapter(base, tmp_path / "plain")
    saved = make_adapter(base, tmp_path / "saved", modules_to_save=["lm_head"])
    head = make_adapter(base, tmp_path / "head", target_modules=["lm_head"])
    dora = make_adapter(base, tmp_path / "dora", use_dora=True)
    tokens = make_adapter(base, tmp_path / "tokens", trainable_token_indices=[3])
    open_merged(base, [Weighted(plain, 0.5), Weighted(saved)])
    for adapters, text in (
        ([Weighted(saved), Weighted(saved)], "replaces lm_head.weight, which another"),
        ([Weighted(head), Weighted(saved)], "replaces lm_head.weight, which another"),
        ([Weighted(saved), Weighted(head)], "replaces lm_head.weight, which another"),
        ([Weighted(tokens), Weighted(tokens)], "replaces model.embed_tokens.weight, which another"),
        (
            [Weighted(saved, 0.5)],
            "replaces lm_head.weight as a whole, so weight 0.5 cannot be applied",
        ),
        ([Weighted(tokens, 0.5)], "replaces model.embed_tokens.weight as a whole, so weight 0.5"),
        ([Weighted(plain), Weighted(dora)], "DoRA adapter, which has no weighted sum"),
        ([Weighted(dora, 0.5)], "DoRA adapter, which has no weighted sum"),
    ):
        with pytest.raises(AdapterError, match=text):
            open_merged(base, adapters)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"peft_type": "IA3"}, "_proj has A, B, and not ia3_l alone"),
        ({"peft_type": "LOHA"}, "_proj has no whole hada_w1"),
        ({"peft_type": "TRAINABLE_TOKENS"}, "_proj has A, B, which TRAINABLE_TOKENS has not"),
        ({"peft_type": "VERA"}, "is a VERA adapter .merge it with peft and give the result"),
        ({"peft_type": "PREFIX_TUNING"}, "PREFIX_TUNING adapter, which .* changes no weight"),
        ({"alora_invocation_tokens": [1, 2]}, "uses alora_invocation_tokens"),
        ({"use_qalora": True, "kasa_config": {"a": 1}}, "uses kasa_config, use_qalora"),
        ({"velora_config": {"scale": 1.0}}, "uses velora_config, which edgeft does not merge"),
        ({"layer_replication": [[0, 1], [0, 2]]}, "uses layer_replication"),
        ({"use_bdlora": {"nblocks": 2}}, "uses use_bdlora"),
        ({"from_the_future": 1}, "uses from_the_future"),
        ({"init_lora_weights": "olora"}, "changed base .init_lora_weights=olora"),
        ({"init_lora_weights": "pissa_niter_16"}, "changed base .init_lora_weights=pissa_niter_16"),
        ({"init_lora_weights": "corda"}, "changed base"),
        ({"init_lora_weights": "loftq"}, "changed base"),
        ({"init_lora_weights": "lora_ga"}, "changed base"),
        ({"r": 8}, "_proj has rank 4, its configuration says 8"),
        ({"rank_pattern": {"k_proj": 3}}, "k_proj has rank 4, its configuration says 3"),
        ({"use_dora": True}, "has no DoRA magnitude, which its configuration contradicts"),
    ],
)
def test_unsupported_adapters_are_refused_in_one_line(
    bases: Callable[[str], Path], tmp_path: Path, config: dict[str, Any], text: str
) -> None:
    adapter = make_adapter(bases("plain"), tmp_path / "adapter")
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    with pytest.raises(AdapterError, match=text) as error:
        open_merged(bases("plain"), adapter)
    assert "\n" not in str(error.value)


def test_default_settings_of_peft_are_merged(bases: Callable[[str], Path], tmp_path: Path) -> None:
    """An allowlist must not refuse what every adapter says."""
    adapter = make_adapter(bases("plain"), tmp_path / "adapter")
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    assert len(config) > 30
    for start in (True, False, None, "eva", "gaussian", "orthogonal", "mica"):
        path.write_text(json.dumps(config | {"init_lora_weights": start, "corda_config": {"a": 1}}))
        open_merged(bases("plain"), adapter)
    plain = {key: config[key] for key in ("peft_type", "r", "lora_alpha")}
    path.write_text(json.dumps(plain))
    open_merged(bases("plain"), adapter)


Q = "layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("edits", "text"),
    [
        ({"drop": f"{Q}.lora_A"}, f"{Q} has no lora_A"),
        ({"drop": f"{Q}.lora_B"}, f"{Q} has no lora_B"),
        ({f"{Q}.lora_A": lambda a: a[:3]}, rf"{Q}.lora_A.weight is \(3, 64\), .*is \(64, 4\)"),
        ({f"{Q}.lora_B": lambda b: b[:9]}, rf"{Q}.weight is \(64, 64\), the adapter's is \(9, 64"),
        ({f"{Q}.lora_A": lambda a: a * np.float32("nan")}, f"{Q}.lora_A.weight holds NaN"),
        ({f"{Q}.lora_B": lambda b: b * np.float32("inf")}, f"{Q}.lora_B.weight holds NaN or inf"),
        ({"lm_head.weight": lambda w: w[:, :9]}, r"lm_head.weight is \(265, 64\), the adapter's"),
        ({"norm.weight": lambda w: w[:9]}, r"model.norm.weight is \(64,\), the adapter's is \(9,"),
    ],
)
def test_broken_tensor_is_named(
    bases: Callable[[str], Path], tmp_path: Path, edits: dict[str, Any], text: str
) -> None:
    base = bases("plain")
    adapter = make_adapter(base, tmp_path / "adapter", modules_to_save=["lm_head", "model.norm"])
    edit(adapter, **edits)
    with pytest.raises(AdapterError, match=text):
        open_merged(base, adapter)


def test_unknown_tensor_is_refused(bases: Callable[[str], Path], tmp_path: Path) -> None:
    base = bases("plain")
    adapter = make_adapter(base, tmp_path / "adapter")
    own = Checkpoint(adapter / "adapter_model.safetensors")
    tensors = {name: own.read(name) for name in own.tensors}
    for extra, text in (
        ("model.layers.0.self_attn.q_proj.lora_E", "lora_E does not belong to a LoRA layer"),
        ("model.scores.weight", "adapts model.scores.weight"),
        ("model.layers.0.self_attn.q_proj.token_adapter.trainable_tokens_delta", "delta does not"),
        ("model.layers.0.self_attn.q_proj.bias", "adapts model.layers.0.self_attn.q_proj.bias"),
        ("model.layers.2.mlp.up_proj.lora_A.weight", "up_proj has no lora_B"),
        ("model.norm.lora_magnitude_vector", "norm has no lora_A"),
        (
            "model.layers.0.self_attn.q_proj.lora_B.bias",
            "adapts .*q_proj.bias, which base does not",
        ),
    ):
        more = {**tensors, f"base_model.model.{extra}": np.ones((64,), np.float32)}
        specs = [Spec(name, "F32", array.shape) for name, array in more.items()]
        write_safetensors(adapter / "adapter_model.safetensors", specs, list(more.values()))
        with pytest.raises(AdapterError, match=text):
            open_merged(base, adapter)


def test_adapter_that_changes_nothing(bases: Callable[[str], Path], tmp_path: Path) -> None:
    import peft

    base = bases("plain")
    for i, options in enumerate(({}, {"use_dora": True}, {"modules_to_save": ["lm_head"]})):
        lora = peft.LoraConfig(r=4, target_modules=ATTENTION, task_type="CAUSAL_LM", **options)
        peft.get_peft_model(load(base), lora).save_pretrained(tmp_path / f"zero{i}")
        merged = open_merged(base, tmp_path / f"zero{i}")
        (tmp_path / f"hf{i}").mkdir()
        converted = convert(merged, tmp_path / f"hf{i}", "f32", format="hf")
        with pytest.raises(ProofError, match="zero everywhere"):
            converted.proof()


def test_proof_of_an_adapter_that_only_replaces(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = bases("plain")
    adapter = make_adapter(base, tmp_path / "adapter", modules_to_save=["lm_head"])
    for part in ("0", "1"):
        edit(adapter, drop=f"layers.{part}.")
    merged = open_merged(base, adapter)
    (tmp_path / "hf").mkdir()
    proof = convert(merged, tmp_path / "hf", "f32", format="hf").proof()
    assert str(proof) == "replaced: 1 tensors that the adapter holds whole"
    name = "lm_head.weight"
    rows = merged.rows(name, slice(0, 9))
    with pytest.raises(ProofError, match="lm_head.weight is not"):
        LandingProof(merged).add(name, *merged.addends(name, slice(0, 9)), rows + 1, rows)


def test_export_of_a_sum(tmp_path: Path, edgeft: Callable[..., Any]) -> None:
    base = make_base(tmp_path / "base")
    one = make_adapter(base, tmp_path / "one")
    two = make_adapter(base, tmp_path / "two:1", target_modules=["embed_tokens"])
    ran = edgeft("merge-export", "--adapter", one, "--adapter", f"{two}:0.5", "--out",
                 tmp_path / "out", "--quant", "f16", "--format", "gguf,hf")  # fmt: skip
    assert ran.code == 0, ran.err
    manifest = store.read_manifest(tmp_path / "out" / "f16.gguf")
    assert manifest is not None
    assert manifest.parents == {
        "base": store.identity(base), "adapter": store.identity(one),
        "adapter 2": store.identity(two),
    }  # fmt: skip
    assert manifest.options["weights"] == [1.0, 0.5]
    assert manifest.facts["parity"]["greedy"]["tokens"] > 0
    assert ran.err.count("no longer tied") == 1
    again = edgeft("merge-export", "--adapter", one, "--out", tmp_path / "single", "--quant", "f16")
    assert again.code == 0, again.err
    single = store.read_manifest(tmp_path / "single" / "f16.gguf")
    assert single is not None
    assert set(single.parents) == {"base", "adapter"}
    assert set(single.options) == {"format", "quant", "base_precision", "validation"}
    for text, says in ((f"{one}:nan", "no weight for an adapter"), (f"{one}:x", "no such adapter"),
                       (f"{one}:0", "such as --adapter PATH:0.5")):  # fmt: skip
        wrong = edgeft("merge-export", "--adapter", text, "--base", base, "--out", tmp_path / "o")
        assert wrong.code == 1 and says in wrong.err and wrong.err.count("\n") == 1


def test_lineage_is_checked_for_every_adapter(bases: Callable[[str], Path], tmp_path: Path) -> None:
    base = bases("plain")
    one = make_adapter(base, tmp_path / "one")
    other = tmp_path / "other"
    with store.writing(other, kind="adapter", options={"base": "elsewhere"},
                       parents={"base": "0" * 64}) as work:  # fmt: skip
        shutil.copytree(one, work.path, dirs_exist_ok=True)
    with pytest.raises(AdapterError, match="trained on another base.*trained on elsewhere"):
        open_merged(base, [Weighted(one), Weighted(other)])


def test_adapter_tensors_stay_in_their_file(bases: Callable[[str], Path], tmp_path: Path) -> None:
    """Opening reads a block at a time, and rows cost what the rows are."""
    import tracemalloc

    base = tmp_path / "base"
    base.mkdir()
    rows, width = 6000, 512
    specs = [Spec("model.embed_tokens.weight", "BF16", (rows, width)),
             Spec("lm_head.weight", "BF16", (rows, width))]  # fmt: skip
    write_safetensors(base / "model.safetensors", specs, [np.ones((rows, width), np.float32)] * 2)
    (base / "config.json").write_text(json.dumps(
        {"architectures": ["LlamaForCausalLM"], "vocab_size": rows, "hidden_size": width}))  # fmt: skip
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    head, part = "base_model.model.lm_head.weight", "base_model.model.model.embed_tokens.lora_"
    shapes = {head: (rows, width), f"{part}embedding_A": (8, rows), f"{part}embedding_B": (width, 8),
              f"{part}magnitude_vector": (width,)}  # fmt: skip
    write_safetensors(adapter / "adapter_model.safetensors",
                      [Spec(name, "BF16", shape) for name, shape in shapes.items()],
                      [np.full(shape, 0.5, np.float32) for shape in shapes.values()])  # fmt: skip
    (adapter / "adapter_config.json").write_text(json.dumps(
        {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "use_dora": True,
         "modules_to_save": ["lm_head"]}))  # fmt: skip
    tracemalloc.start()
    merged = open_merged(base, adapter)
    for name in merged.shapes:
        merged.rows(name, slice(100, 200))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * rows * width, "less than one of the tensors in float32 would be"
