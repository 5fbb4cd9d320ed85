"""Every kind of adapter that peft saves, held to what peft's live adapter computes."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_families import MOE, SMALL, Tiny, make_tiny
from tiny import make_base, make_tokenizer

from edgeft import stage
from edgeft.adapter import Weighted, read_adapters
from edgeft.checkpoint import Checkpoint, Spec, write_safetensors
from edgeft.converters import gguf, hf
from edgeft.errors import AdapterError, ProofError
from edgeft.merge import Merged, open_merged

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
TIED = SMALL | {"tie_word_embeddings": True}
BIASED = SMALL | {"attention_bias": True, "mlp_bias": True}
IDS = list(range(3, 35))

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def load(base: Path) -> Any:
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


def reload(base: Path, adapter: Path, rows: int | None = None) -> Any:
    """The live adapter as a user opens it."""
    import peft

    model = load(base)
    if rows:
        model.resize_token_embeddings(rows)
    return peft.PeftModel.from_pretrained(model, adapter).eval()


def make_adapter(base: Path, adapter: Path, rows: int | None = None, **lora: Any) -> Path:
    """An adapter whose tensors are all random."""
    import peft
    import torch

    torch.manual_seed(1)
    model = load(base)
    if rows:
        model.resize_token_embeddings(rows)
    options = {"r": 4, "lora_alpha": 6, "target_modules": ATTENTION, "task_type": "CAUSAL_LM"}
    live = peft.get_peft_model(model, peft.LoraConfig(**(options | lora)))
    with torch.no_grad():
        for name, parameter in live.named_parameters():
            if "magnitude" in name:
                parameter.mul_(torch.rand_like(parameter) + 0.5)
            elif parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    live.save_pretrained(adapter)
    return adapter


def logits(model: Any) -> Any:
    import torch

    with torch.inference_mode():
        return model(torch.tensor([IDS])).logits[0].numpy()


def assert_merged(merged: Merged, base: Path, adapter: Path) -> None:
    """As peft merges it, whole and by rows."""
    wanted = reload(base, adapter).merge_and_unload().state_dict()
    changed = 0
    plain = Checkpoint(base)
    for name in merged.shapes:
        got = merged.tensor(name)
        np.testing.assert_allclose(got, wanted[name].numpy(), rtol=0, atol=2e-6, err_msg=name)
        rows = np.arange(0, merged.shapes[name][0], 3)
        np.testing.assert_allclose(merged.rows(name, rows), got[rows], rtol=0, atol=1e-6)
        changed += not np.array_equal(got, plain.read(name))
    assert changed


def assert_live(merged: Merged, live: Any, folder: Path) -> None:
    """The exported folder, opened by transformers, computes what the live adapter computes."""
    folder.mkdir()
    hf.convert(merged, folder, "f32", threads=1)
    merged.proof()
    wanted = logits(live)
    got = logits(load(folder))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4 * wanted.std())


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
def test_merged_is_what_peft_merges(
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
def test_tied_embeddings_do_what_the_live_adapter_does(
    bases: Callable[[str], Path], tmp_path: Path, variant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lora, tied = TIES[variant]
    base = bases("tied")
    adapter = make_adapter(base, tmp_path / "adapter", **lora)
    merged = open_merged(base, adapter)
    assert merged.tied == tied
    assert ("lm_head.weight" in merged.shapes) != tied
    assert ("no longer tied" in capsys.readouterr().err) != tied
    assert_live(merged, reload(base, adapter), tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["tie_word_embeddings"] == tied
