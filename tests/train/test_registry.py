"""Every row of the tables names a class that implements its protocol."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest

from edgeft.errors import InputError, MissingExtra
from edgeft.train import memory
from edgeft.train.options import TrainOptions
from edgeft.train.protocol import Method, Objective
from edgeft.train.registry import (
    METHOD_OPTIONS,
    METHODS,
    OBJECTIVES,
    check_options,
    load_method,
    load_objective,
    method_row,
)


def members(protocol: type) -> set[str]:
    return {name for name in vars(protocol) if not name.startswith("_")}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_implements_the_protocol(name: str) -> None:
    method: Any = load_method(name)
    assert Method in method.__mro__
    for member in members(Method) - {"parameter_groups"}:
        assert getattr(method, member) is not getattr(Method, member), member
    row = METHODS[name]
    assert row.result in ("adapter", "base")
    assert 0 < row.trained_share <= 1
    assert set(row.options) <= METHOD_OPTIONS
    assert row.about and 0 < row.learning_rate < 0.1


def test_an_option_of_another_method_is_refused(tmp_path: Path) -> None:
    options = TrainOptions(tmp_path, tmp_path, tmp_path / "out", lora_r=8)
    check_options("dora", options)
    with pytest.raises(InputError, match="--lora-r is not for --method full.*for qlora, lora"):
        check_options("full", options)
    with pytest.raises(InputError, match="--freeze-trainable-layers is not for --method lora"):
        check_options("lora", TrainOptions(tmp_path, tmp_path, tmp_path, freeze_trainable_layers=1))


def test_what_no_format_can_hold_is_refused_with_the_reason() -> None:
    with pytest.raises(InputError, match="'bottleneck': .*no format .*gguf.*lora, or ia3"):
        method_row("bottleneck")


def test_memory_and_checkpoints_grow_with_what_trains(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"architectures": ["LlamaForCausalLM"], "vocab_size": 32000}'
    )
    base, plain = memory.read_base(tmp_path), TrainOptions(tmp_path, tmp_path, tmp_path)

    def request(method: str, **options: Any) -> memory.Request:
        changed = dataclasses.replace(plain, **options)
        return memory.Request(base, changed, METHODS[method].trains, memory.Batch(1, 8, 4))

    def per_weight(method: str, **options: Any) -> float:
        """Bytes of weights, gradients and moments for each weight of the base."""
        need = request(method, **options).memory
        return (need.base + need.trained + need.gradients + need.optimizer) / base.weights

    assert per_weight("full") == 16
    assert request("full").checkpoint_bytes == 12 * base.weights
    assert 4 < per_weight("lora") < 5
    assert per_weight("qlora", keep_4bit=True) < 2
    assert request("bitfit").checkpoint_bytes > 4 * base.weights, (
        "the checkpoint is the whole model"
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_implements_the_protocol(name: str) -> None:
    objective: Any = load_objective(name)
    assert Objective in objective.__mro__
    assert all(
        getattr(objective, member) is not getattr(Objective, member)
        for member in members(Objective) - {"answers_per_row", "curves"}
    )


def test_unknown_names_are_refused_with_a_suggestion() -> None:
    with pytest.raises(InputError, match="no training method 'qlor'.*did you mean 'qlora'"):
        method_row("qlor")
    with pytest.raises(InputError, match="no training objective 'stf'.*.*pretrain.*, sft"):
        load_objective("stf")


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtra, match=r"peft is not installed.*edgeft\[train\]"):
        load_method("qlora")
