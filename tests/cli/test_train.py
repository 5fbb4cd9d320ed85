"""`edgeft train`: the list of methods, a run of another method than QLoRA, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeft import store
from edgeft.train.optimizers import OPTIMIZERS, optimizer_rows
from edgeft.train.options import TrainOptions
from edgeft.train.registry import METHODS, OBJECTIVES, UNAVAILABLE

Run = Callable[..., Any]


def test_the_list_names_every_method_and_objective(edgeft: Run) -> None:
    ran = edgeft("train", "--list")
    lines = ran.out.splitlines()
    assert ran.code == 0 and lines[0].split()[:2] == ["method", "result"]
    assert [line.split()[0] for line in lines[1 : 1 + len(METHODS)]] == list(METHODS)
    full = next(line for line in lines if line.startswith("full"))
    assert full.split()[1:6] == ["base", "gguf", "hf", "gptq", "onnx"]
    assert "bottleneck: not available: " in ran.out
    heads = next(i for i, line in enumerate(lines) if line.startswith("objective "))
    table = lines[heads + 1 : heads + 1 + len(OBJECTIVES)]
    assert [line.split()[0] for line in table] == list(OBJECTIVES)
    assert "--loss-type of dpo: sigmoid, hinge, ipo, robust, " in ran.out


def test_the_list_names_every_optimizer_with_its_memory_package_and_device(edgeft: Run) -> None:
    lines = edgeft("train", "--list").out.splitlines()
    table = lines[len(lines) - lines[::-1].index("") :]
    assert [line.split()[0] for line in table] == ["optimizer", *OPTIMIZERS]
    cells = {line.split()[0]: line.split()[1:4] for line in table}
    assert cells["galore"] == ["1.5", "galore-torch", "cpu"]
    assert cells["adalomo"] == ["0.01", "lomo-optim", "cuda"]


def test_the_list_is_one_json_object(edgeft: Run) -> None:
    for order in (("--list", "--json"), ("--json", "--list")):
        listed = json.loads(edgeft("train", *order).out)
        rows = {row["method"]: row for row in listed["methods"]}
        assert set(rows) == {*METHODS, *UNAVAILABLE}
        assert rows["freeze"]["options"] == ["--target-modules", "--freeze-trainable-layers"]
        assert rows["bottleneck"].keys() == {"method", "unavailable"}
        assert listed["optimizers"] == optimizer_rows()
        assert [row["objective"] for row in listed["objectives"]] == list(OBJECTIVES)


def test_a_method_trains_with_its_learning_rate_and_a_config(
    edgeft: Run, tiny_base: Path, tiny_chats: Path, tmp_path: Path
) -> None:
    config = tmp_path / "run.toml"
    config.write_text(
        f"[train]\nmethod = 'full'\nbase = '{tiny_base}'\nsteps = 1\nbatch-size = 2\n"
        "compute-type = 'fp32'\n"
    )
    output = tmp_path / "model"
    ran = edgeft("train", "--config", config, "--data", tiny_chats, "--output", output, "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["base"] == str(output)
    manifest = store.read_manifest(output)
    assert manifest is not None
    assert manifest.options["learning_rate"] == METHODS["full"].learning_rate


def test_wrong_names_and_options_are_refused_before_any_work(
    edgeft: Run, tiny_base: Path, tiny_chats: Path, tmp_path: Path
) -> None:
    common = ("--base", tiny_base, "--data", tiny_chats, "--output", tmp_path / "out")
    for more, message in (
        (("--method", "dorra"), "did you mean 'dora'"),
        (("--objective", "dpp"), "no training objective 'dpp'"),
        (("--method", "bottleneck"), "no format"),
        (("--method", "full", "--lora-r", 8), "--lora-r is not for --method full"),
        (("--method", "lora", "--keep-4bit"), "--keep-4bit is not for --method lora (for qlora)"),
    ):
        ran = edgeft("train", *common, *more)
        assert ran.code == 1 and message in ran.err and ran.err.count("\n") == 1, ran.err
        assert not (tmp_path / "out").exists() and not ran.out


def test_an_adapter_brings_the_options_of_its_training(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edgeft: Run
) -> None:
    """Those of the command line and of --config go before them."""
    from edgeft.cli import _training

    trained = TrainOptions(
        tiny_base, tmp_path / "chats.jsonl", tmp_path / "adapter", lora_r=8, target_modules=("q_proj",),
        validation_size=7, steps=900, learning_rate=3.0, seed=5,
    )  # fmt: skip
    recorded = trained.to_json() | {"method": "rslora"}
    with store.writing(trained.output, kind="adapter", options=recorded, parents={}) as work:
        (work.path / "adapter_config.json").write_text("{}")
    runs: list[TrainOptions] = []
    monkeypatch.setattr(_training, "_preview", lambda run, *_: runs.append(run))
    config = tmp_path / "run.toml"
    config.write_text("seed = 6")
    again = ("train", "--adapter", trained.output, "--output", tmp_path / "b", "--ship", "q4_0",
             "--config", config, "--lora-alpha", 64, "--preview")  # fmt: skip
    assert edgeft(*again).code == 0
    (run,) = runs
    assert (run.base, run.data, run.lora_r, run.target_modules, run.validation_size) == (
        tiny_base, trained.data, 8, ("q_proj",), 7,
    )  # fmt: skip
    assert (run.seed, run.lora_alpha, run.steps) == (6, 64, None), "its own"
    assert run.learning_rate == 5e-4, "of rslora, which trained the adapter"
    assert run.ship_share == 1
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 12}')
    of_foreign = ("train", "--adapter", foreign, "--base", tiny_base, "--data", trained.data,
                  "--output", tmp_path / "c", "--preview")  # fmt: skip
    assert edgeft(*of_foreign).code == 0
    assert (runs[-1].lora_r, runs[-1].lora_alpha) == (4, 12)
