"""Which weights LN tuning, BitFit and freeze train, in families with other modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Family

from edgeft.errors import InputError
from edgeft.files import read_json
from edgeft.merge.view import open_merged
from edgeft.runtimes.gguf import GGUFRuntime
from edgeft.runtimes.reference import ReferenceRuntime
from edgeft.train.options import TrainOptions
from edgeft.weights.checkpoint import Checkpoint
from helpers.converting import convert


def train(method: str, base: Path, chats: Path, output: Path, **more: Any) -> dict[str, Any]:
    from edgeft.train.run import train as run

    settings: dict[str, Any] = {
        "steps": 2, "batch_size": 2, "micro_batch_size": 2, "validation_size": 0, "warmup": 0,
        "learning_rate": 0.01, "save_every": 0, "compute_type": "fp32",
    }  # fmt: skip
    return run(TrainOptions(base, chats, output, **settings | more), method=method).facts


def changed(base: Path, adapter: Path) -> set[str]:
    """Names of the weights that the adapter changes."""
    before, after = Checkpoint(base), open_merged(base, adapter)
    return {
        name for name in after.shapes if not np.array_equal(before.read(name), after.tensor(name))
    }


def assert_landed(base: Path, adapter: Path, out: Path) -> None:
    """The GGUF has the logits of peft's live model, which are others than the base's."""
    convert(open_merged(base, adapter), out, "f32").proof()
    ids = [5, 40, 41, 42, 60, 61]
    live = ReferenceRuntime(base, adapters=[(adapter, 1.0)]).logits(ids)
    with GGUFRuntime(out, threads=1) as model:
        np.testing.assert_allclose(model.logits(ids), live, atol=0.05)
    assert np.abs(live - ReferenceRuntime(base).logits(ids)).max() > 0.1


@pytest.mark.parametrize(("case", "modules"), [
    ("qwen2", {"q_proj", "k_proj", "v_proj"}),
    ("pythia", {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h", "input_layernorm",
                "post_attention_layernorm", "final_layer_norm"}),
])  # fmt: skip
def test_bitfit_trains_every_bias_and_stores_nothing_else(
    make: Family, tiny_chats: Path, tmp_path: Path, case: str, modules: set[str]
) -> None:
    base = make(case)[0]
    facts = train("bitfit", base, tiny_chats, tmp_path / "adapter")
    assert facts["trained"] == "biases"
    biases = {name for name in Checkpoint(base).tensors if name.endswith(".bias")}
    assert changed(base, tmp_path / "adapter") == biases
    assert {name.split(".")[-2] for name in biases} == modules
    stored = Checkpoint(tmp_path / "adapter/adapter_model.safetensors").tensors
    assert len(stored) == len(biases) and all(name.endswith(".bias") for name in stored)
    assert_landed(base, tmp_path / "adapter", tmp_path / "x.gguf")


def test_bitfit_says_that_it_trains_norms_instead(
    tiny_base: Path, tiny_chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = train("bitfit", tiny_base, tiny_chats, tmp_path / "adapter", steps=1)
    assert "has no biases: its norms are trained instead" in capsys.readouterr().err
    assert facts["trained"] == "norms"


def test_a_family_without_weights_in_its_norms_is_refused(
    make: Family, tiny_chats: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="the olmo family has no norms to train"):
        train("ln_tuning", make("olmo")[0], tiny_chats, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(("layers", "expected"), [(1, {"1"}), (-1, {"0"}), (2, {"0", "1"})])
def test_freeze_trains_the_last_or_the_first_layers(
    tiny_base: Path, tiny_chats: Path, tmp_path: Path, layers: int, expected: set[str]
) -> None:
    adapter = tmp_path / "adapter"
    train("freeze", tiny_base, tiny_chats, adapter, freeze_trainable_layers=layers, steps=1)
    names = changed(tiny_base, adapter)
    assert {name.split(".")[2] for name in names} == expected
    assert len(names) == 9 * len(expected)


def test_freeze_trains_chosen_modules(tiny_base: Path, tiny_chats: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    more: dict[str, Any] = {"freeze_trainable_layers": 1, "target_modules": ("up_proj", "norm")}
    train("freeze", tiny_base, tiny_chats, adapter, **more)
    assert changed(tiny_base, adapter) == {"model.layers.1.mlp.up_proj.weight"}
    more = {"freeze_trainable_layers": 0, "target_modules": (r".*(0\.mlp\.up_proj|\.norm)",)}
    train("freeze", tiny_base, tiny_chats, tmp_path / "other", **more)
    both = {"model.layers.0.mlp.up_proj.weight", "model.norm.weight"}
    assert changed(tiny_base, tmp_path / "other") == both


def test_a_tied_embedding_stays_tied(tiny_base: Path, tiny_chats: Path, tmp_path: Path) -> None:
    """In training it is the head, too: so it is for peft and in the artifact."""
    adapter = tmp_path / "adapter"
    more: dict[str, Any] = {"freeze_trainable_layers": 0, "target_modules": ("embed_tokens",)}
    train("freeze", tiny_base, tiny_chats, adapter, **more)
    merged = open_merged(tiny_base, adapter)
    assert merged.tied and changed(tiny_base, adapter) == {"model.embed_tokens.weight"}
    assert_landed(tiny_base, adapter, tmp_path / "x.gguf")


def test_experts_are_trained_and_replaced(make: Family, tiny_chats: Path, tmp_path: Path) -> None:
    """transformers holds them in one parameter, peft loads it under the base's name."""
    base, adapter = make("mixtral")[0], tmp_path / "adapter"
    train("freeze", base, tiny_chats, adapter, freeze_trainable_layers=1, learning_rate=0.03)
    experts = {name for name in changed(base, adapter) if ".experts." in name}
    assert experts == {
        f"model.layers.1.block_sparse_moe.experts.{e}.w{i}.weight"
        for e in range(4) for i in (1, 2, 3)
    }  # fmt: skip
    assert_landed(base, adapter, tmp_path / "x.gguf")


@pytest.mark.parametrize(("more", "message"), [
    ({"freeze_trainable_layers": 3}, "the base has 2 layers"),
    ({"freeze_trainable_layers": 0}, "0 trains everything"),
    ({"target_modules": ("norm",)}, "the chosen modules have no .* to train"),
    ({"target_modules": ("q_prok",)}, "no modules named q_prok"),
])  # fmt: skip
def test_layers_and_modules_that_are_not_there_are_refused(
    tiny_base: Path, tiny_chats: Path, tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train("freeze", tiny_base, tiny_chats, tmp_path / "adapter", **more)


def test_weights_stay_in_float32_where_the_computation_is_in_bfloat16(
    tiny_base: Path, tiny_chats: Path, tmp_path: Path
) -> None:
    """A step of 1e-4 would be lost in bfloat16 weights around 1."""
    more: dict[str, Any] = {"compute_type": "bf16", "learning_rate": 1e-4}
    facts = train("ln_tuning", tiny_base, tiny_chats, tmp_path / "adapter", **more)
    assert facts["compute_type"] == "bfloat16"
    stored = Checkpoint(tmp_path / "adapter/adapter_model.safetensors")
    assert {info.dtype for info in stored.tensors.values()} == {"F32"}
    norm = "model.norm.weight"
    change = open_merged(tiny_base, tmp_path / "adapter").tensor(norm) - Checkpoint(tiny_base).read(
        norm
    )
    assert 0 < np.abs(change).max() < 1e-3
    config = read_json(tmp_path / "adapter/adapter_config.json")
    assert config["target_modules"] == ["input_layernorm", "norm", "post_attention_layernorm"]
