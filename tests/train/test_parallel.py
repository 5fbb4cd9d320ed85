"""What processes divide: the losses of one process, checkpoints that others read, and what is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from edgeft.errors import EdgeftError, InputError, MissingExtra, StaleError
from edgeft.progress import Progress
from edgeft.train import checkpoints, loop, processes
from edgeft.train.options import TrainOptions
from edgeft.train.parallel import PARALLEL, check_parallel, checkpoint_layout
from edgeft.train.registry import OBJECTIVES
from edgeft.train.run import train
from edgeft.train.zero import zero_config
from helpers.preferences import make_pairs

LOSS_TOLERANCE = 2e-4
"""nats; curves are recorded with four digits, and two processes add up in another order"""
RUN: dict[str, Any] = {
    "batch_size": 4, "micro_batch_size": 1, "steps": 6, "validation_size": 5, "save_every": 2,
    "eval_every": 3, "learning_rate": 1e-2, "compute_type": "fp32",
}  # fmt: skip
DIVIDED = tuple(name for name in PARALLEL if name != "ddp")
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="the extra deepspeed is not installed"
)


@pytest.fixture
def options(tiny_base: Path, tiny_chats: Path, tmp_path: Path) -> TrainOptions:
    return TrainOptions(tiny_base, tiny_chats, tmp_path / "one", **RUN)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks that need not import everything again. One thread each, so that a fork is safe."""
    monkeypatch.setattr(processes, "START_METHOD", "fork")


def several(options: TrainOptions, name: str, **more: Any) -> TrainOptions:
    return dataclasses.replace(
        options, output=options.output.with_name(name), **{"processes": 2, **more}
    )


def assert_same(one: TrainOptions, two: TrainOptions, facts: list[dict[str, Any]]) -> None:
    for curve in ("loss", "validation_loss"):
        np.testing.assert_allclose(
            facts[1][curve], facts[0][curve], atol=LOSS_TOLERANCE, err_msg=curve
        )
    assert facts[0]["trained_parameters"] == facts[1]["trained_parameters"]
    (file,) = one.output.glob("*.safetensors")
    weights, expected = load_file(two.output / file.name), load_file(file)
    assert weights.keys() == expected.keys()
    for name, values in expected.items():
        difference = weights[name] - values
        assert np.linalg.norm(difference) <= 2e-5 * np.linalg.norm(values), name
        # Adam divides a gradient near 0 by its own size: a single weight follows its last bits.
        np.testing.assert_allclose(difference, 0, atol=1e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("parallel", [
    "fsdp2", *(pytest.param(name, marks=needs_deepspeed) for name in DIVIDED if name != "fsdp2")
])  # fmt: skip
@pytest.mark.parametrize("method", ["qlora", "full"])
def test_divided_weights_have_the_losses_of_one_process(
    options: TrainOptions, parallel: str, method: str
) -> None:
    """Without a checkpoint at the end, which would divide again what the last evaluation has gathered."""
    more = {"learning_rate": 1e-3} if method == "full" else {}
    options = dataclasses.replace(options, save_every=0, **more)
    two = several(options, parallel, parallel=parallel)
    facts = [train(run, method=method).facts for run in (options, two)]
    assert_same(options, two, facts)
    assert facts[1]["processes"]["parallel"] == parallel


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize(("objective", "method"), [
    *((name, "lora") for name, row in OBJECTIVES.items() if row.processes == ("ddp",)), ("dpo", "full"),
])  # fmt: skip
def test_preferences_have_the_losses_of_one_process(
    options: TrainOptions, tmp_path: Path, objective: str, method: str
) -> None:
    more = {"micro_batch_size": 2, "validation_size": 4, "learning_rate": 1e-3}
    options = dataclasses.replace(options, data=make_pairs(tmp_path / "pairs.jsonl"), **more)
    runs = (options, several(options, "two"))
    one, two = (train(run, method=method, objective=objective).facts for run in runs)
    for curve in ("loss", "validation_loss"):
        np.testing.assert_allclose(two[curve], one[curve], atol=LOSS_TOLERANCE, err_msg=curve)
    assert two["reward_margin"] == one["reward_margin"]


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("first", ["fsdp2", pytest.param("zero2", marks=needs_deepspeed)])
def test_a_stopped_run_goes_on(options: TrainOptions, first: str) -> None:
    """FSDP 2 writes what one process reads, and the other way round; ZeRO reads its own."""
    one = train(options, method="lora").facts
    two = several(options, "two", parallel=first)
    alone = dataclasses.replace(two, processes=1, parallel="ddp")
    order = [two, alone] if first == "fsdp2" else [two, two]
    for begin, end in (order, order[::-1]):
        with stopped_at(5):
            train(begin, method="lora")
        if first == "zero2":
            with pytest.raises(
                StaleError, match="--parallel zero2 --processes 2 --nodes 1 and are read so"
            ):
                train(alone, resume=True, method="lora")
        facts = train(end, resume=True, method="lora").facts
        assert_same(options, two, [one, facts])
        for path in two.output.iterdir():
            path.unlink()
        two.output.rmdir()


@contextlib.contextmanager
def stopped_at(step: int) -> Iterator[None]:
    """The training in the block ends after a step, in every process."""
    update = Progress.update

    def stopping(bar: Progress, done: int, **values: Any) -> None:
        update(bar, done, **values)
        if bar.done == step and done:
            raise InputError("stopped")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(EdgeftError, match="stopped"):
        patch.setattr(Progress, "update", stopping)
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_each_process_holds_half_of_the_weights(
    options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    gather = loop.gather_trained

    def counting(model: Any) -> None:
        shares = {name: weight.to_local().numel() / weight.numel() for name, weight in model.named_parameters()}  # fmt: skip
        assert shares and all(0.4 < share < 0.6 for share in shares.values()), shares
        gather(model)

    monkeypatch.setattr(loop, "gather_trained", counting)
    train(several(options, "two", parallel="fsdp2"), method="lora")


def test_what_does_not_go_with_divided_weights_is_refused(
    options: TrainOptions, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    for parallel in PARALLEL:
        check_parallel(several(options, "two", parallel=parallel), "lora", "sft")
    for more, message in (
        ({"keep_4bit": True}, "--keep-4bit is not for --parallel fsdp2: packed weights"),
        ({"optimizer": "muon"}, "--optimizer muon was not tried with --parallel fsdp2"),
        ({"processes": 1}, "--parallel fsdp2 is for several processes"),
        ({"offload": "cpu"}, "--offload is DeepSpeed's"),
        ({"parallel": "zero2", "offload": "disk"}, "--offload disk is not known .cpu, or nvme:"),
        ({"parallel": "zero2", "offload": f"nvme:{tmp_path}"}, "nvme is for --parallel zero3"),
        ({"parallel": "zero3", "offload": "nvme:/nowhere"}, "there is no folder /nowhere"),
    ):
        with pytest.raises(InputError, match=message):
            check_parallel(several(options, "two", **{"parallel": "fsdp2", **more}), "lora", "sft")
    with pytest.raises(InputError, match="pissa is not for --parallel fsdp2: it needs whole"):
        check_parallel(several(options, "two", parallel="fsdp2"), "pissa", "sft")
    with pytest.raises(InputError, match="--eval-items is not for --parallel fsdp2: one process"):
        check_parallel(several(options, "two", parallel="fsdp2"), "lora", "sft", answers=True)
    with pytest.raises(
        InputError, match="--objective dpo was not tried with --parallel fsdp2 .*ddp"
    ):
        check_parallel(several(options, "two", parallel="fsdp2"), "lora", "dpo")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"needs deepspeed.*edgeft\[deepspeed\]"):
        check_parallel(several(options, "two", parallel="zero1"), "lora", "sft")


def test_deepspeed_gets_the_batch_and_the_place_of_what_it_divides(options: TrainOptions) -> None:
    run = several(options, "two", parallel="zero3", offload="nvme:/disk")
    config = zero_config(run)
    sizes = [config[key] for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")]  # fmt: skip
    assert sizes == [4, 1, 2] and config["gradient_clipping"] == 1
    place = {"device": "nvme", "nvme_path": "/disk"}
    zero = config["zero_optimization"]
    assert (zero["stage"], zero["offload_param"], zero["offload_optimizer"]) == (3, place, place)
    two = zero_config(several(options, "two", parallel="zero2", offload="cpu"))["zero_optimization"]
    assert two["offload_optimizer"] == {"device": "cpu"} and "offload_param" not in two


def test_checkpoints_of_zero_are_read_by_their_own_kind(
    options: TrainOptions, tmp_path: Path
) -> None:
    zero = checkpoint_layout(several(options, "two", parallel="zero2"))
    assert zero == {"parallel": "zero2", "processes": 2, "nodes": 1}
    assert checkpoint_layout(options) == checkpoint_layout(several(options, "two", parallel="fsdp2")) == {}  # fmt: skip
    request: dict[str, dict[str, Any]] = {"options": {"steps": 6}, "parents": {}}
    for layout, other in ((zero, {}), ({}, zero)):
        work = tmp_path / str(len(layout))
        checkpoints.open_work_folder(work, request, None, layout)
        (work / "checkpoint-2").mkdir()
        (work / "checkpoint-2" / "weights").write_text("abc")
        checkpoints.flush(work / "checkpoint-2")
        with pytest.raises(StaleError, match="the checkpoints were written with .* read so alone"):
            checkpoints.resumable(work, request, True, False, other)
        newest = checkpoints.resumable(work, request, True, False, layout)
        assert newest == work / "checkpoint-2"
        checkpoints.remove_finished(work, request)
        assert not work.exists()


def test_the_configuration_is_printed_and_nothing_is_trained(
    edgeft: Callable[..., Any], tiny_base: Path, tiny_chats: Path, tmp_path: Path
) -> None:
    ran = edgeft(
        "train", "--method", "lora", "--base", tiny_base, "--data", tiny_chats,
        "--output", tmp_path / "out", "--processes", 4, "--parallel", "fsdp2", "--show-config",
    )  # fmt: skip
    assert ran.code == 0 and json.loads(ran.out) == {
        "processes": 4, "nodes": 1, "parallel": "fsdp2", "batch_size": 8, "micro_batch_size": 2,
        "gradient_accumulation_steps": 1,
    }  # fmt: skip
    assert not list(tmp_path.iterdir())
