"""Several processes: the curve of one, one result, and ends that leave no process and nothing half-written."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from edgeft.errors import EdgeftError, InputError, ResourceError
from edgeft.progress import Progress
from edgeft.train import processes
from edgeft.train.options import TrainOptions
from edgeft.train.parallel import check_parallel
from edgeft.train.run import train, train_beside

LOSS_TOLERANCE = 2e-4
"""nats; curves are recorded with four digits, and two processes add up in another order"""
RUN: dict[str, Any] = {
    "batch_size": 4, "micro_batch_size": 2, "epochs": 2, "validation_size": 5, "save_every": 4,
    "eval_every": 4, "learning_rate": 1e-2, "compute_type": "fp32", "seed": 3,
}  # fmt: skip


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks that need not import everything again. One thread each, so that a fork is safe."""
    monkeypatch.setattr(processes, "START_METHOD", "fork")


@pytest.fixture(scope="module")
def options(
    tiny_base: Path, tiny_chats: Path, tmp_path_factory: pytest.TempPathFactory
) -> TrainOptions:
    """Twice 14 examples in micro-batches of two: the last step has one, and nothing for the second process."""
    chats = tmp_path_factory.mktemp("processes") / "chats.jsonl"
    chats.write_text("".join(tiny_chats.read_text().splitlines(keepends=True)[:19]))
    return TrainOptions(tiny_base, chats, chats.with_name("one"), **RUN)


@pytest.fixture(scope="module")
def one(options: TrainOptions) -> dict[str, Any]:
    """Facts of the run in one process."""
    return train(options, method="lora").facts


def assert_same(options: TrainOptions, facts: dict[str, Any], one: dict[str, Any]) -> None:
    for curve in ("loss", "validation_loss"):
        np.testing.assert_allclose(facts[curve], one[curve], atol=LOSS_TOLERANCE, err_msg=curve)
    assert facts["loss"][0][1] > 2 * facts["loss"][-1][1], "it learns"
    weights = load_file(options.output / "adapter_model.safetensors")
    for name, expected in load_file(options.output.with_name("one") / "adapter_model.safetensors").items():  # fmt: skip
        np.testing.assert_allclose(weights[name], expected, atol=1e-5)


@pytest.mark.usefixtures("forked")
def test_two_processes_have_the_losses_of_one_with_the_same_batches(
    options: TrainOptions, one: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    two = dataclasses.replace(options, output=options.output.with_name("two"), processes=2)
    capfd.readouterr()
    facts = train(two, method="lora").facts
    out, err = capfd.readouterr()
    assert_same(two, facts, one)
    assert (facts["processes"]["processes"], facts["steps"]) == (2, 8)
    assert facts["examples"] == one["examples"]
    assert facts["shared_prefix"] and "processes" not in one
    assert out == "" and err.count("computing in float32") == 1, "only rank 0 speaks, on stderr"
    train(dataclasses.replace(two, processes=1), method="lora")
    assert "is complete, nothing to do" in capfd.readouterr().err


@pytest.mark.usefixtures("forked")
def test_a_killed_rank_ends_the_run_and_one_process_goes_on_from_its_checkpoint(
    options: TrainOptions, one: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    two = dataclasses.replace(options, output=options.output.with_name("killed"), processes=2)
    update = Progress.update

    def killed(self: Progress, done: int, **values: Any) -> None:
        update(self, done, **values)
        if self.done == 6 and os.environ.get("RANK") == "1":
            os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "update", killed)
        with pytest.raises(ResourceError, match=r"process 1 of 2 was ended by SIGKILL.*--resume"):
            train(two, method="lora")
    assert not multiprocessing.active_children()
    assert sorted(path.name for path in two.work_folder.glob("checkpoint-*")) == ["checkpoint-4"]
    assert not two.output.exists()
    facts = train(dataclasses.replace(two, processes=1), resume=True, method="lora").facts
    assert_same(two, facts, one)


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("error", [InputError("a bad row", "mend it"), ValueError("a defect")])
def test_what_a_rank_raises_is_raised_here(
    options: TrainOptions, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeft.train import loop

    def fit(*_: Any) -> None:
        raise error

    monkeypatch.setattr(loop, "fit", fit)
    two = dataclasses.replace(options, output=options.output.with_name("failed"), processes=2)
    expected = "a bad row .mend it." if isinstance(error, InputError) else r"process \d of 2:\n.*a defect"  # fmt: skip
    with pytest.raises(Exception, match=f"(?s){expected}"):
        train(two, method="lora")
    assert not two.output.exists() and not multiprocessing.active_children()


@pytest.mark.usefixtures("forked")
def test_ctrl_c_ends_every_rank(options: TrainOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(ranks: Any) -> None:
        assert len(multiprocessing.active_children()) == 2
        raise KeyboardInterrupt

    monkeypatch.setattr(processes, "_wait", interrupted)
    two = dataclasses.replace(options, output=options.output.with_name("stopped"), processes=2)
    with pytest.raises(KeyboardInterrupt):
        train(two, method="lora")
    assert not multiprocessing.active_children() and not two.output.exists()


def test_what_is_for_one_process_is_refused(tiny_base: Path, tiny_chats: Path) -> None:
    def several(**more: Any) -> TrainOptions:
        return TrainOptions(tiny_base, tiny_chats, Path("out"), **{**RUN, "processes": 2, **more})

    check_parallel(several(), "lora", "sft")
    for more, objective, message in (
        ({"ship": "q4_0"}, "sft", "--ship is for one process"),
        ({"optimizer": "badam"}, "sft", "--optimizer badam is for one process: the weights that"),
        ({"optimizer": "lomo"}, "sft", "within the backward pass"),
        ({"threads": "auto"}, "sft", "--threads auto is for one process"),
        ({}, "grpo", "--objective grpo is for one process .several train sft, pretrain, dpo"),
    ):
        with pytest.raises(InputError, match=message):
            check_parallel(several(**more), "lora", objective)
    for more, message in (
        ({"nodes": 2}, "--nodes and --main-address go together"),
        ({"nodes": 2, "main_address": "host"}, "--main-address host is not HOST:PORT"),
        ({"nodes": 2, "main_address": "host:1", "node_rank": 2}, "--node-rank is from 0 to"),
    ):
        with pytest.raises(InputError, match=message):
            several(processes=1, **more)
    with pytest.raises(InputError, match="no multiple of --micro-batch-size 2 x 3 processes"):
        several(processes=3)
    with pytest.raises(InputError, match="auto is for one process .such as --micro-batch-size 2"):
        several(micro_batch_size="auto")
    with pytest.raises(InputError, match="a trial of a sweep is one process"):
        train(several(), watch=lambda _: None)


def beside(options: TrainOptions) -> multiprocessing.Process:
    """Another node on this machine."""

    def run() -> None:
        try:
            train_beside(options, method="lora")
        except EdgeftError as error:
            print(f"node {options.node_rank}: {error}", file=sys.stderr)

    process: Any = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_two_nodes_have_the_losses_of_one_process(
    options: TrainOptions, one: dict[str, Any], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    main = dataclasses.replace(
        options, output=options.output.with_name("nodes"), nodes=2, main_address=address
    )
    other = dataclasses.replace(main, node_rank=1)
    node = beside(other)
    facts = train(main, method="lora").facts
    node.join(60)
    assert node.exitcode == 0
    assert_same(main, facts, one)
    assert (facts["processes"]["nodes"], facts["processes"]["processes"]) == (2, 1)

    data = tmp_path / "data.jsonl"
    data.write_text("".join(options.data.read_text().splitlines(keepends=True)[1:]))
    main = dataclasses.replace(main, output=tmp_path / "refused")
    node = beside(dataclasses.replace(main, node_rank=1, data=data))
    capfd.readouterr()
    with pytest.raises(EdgeftError, match="the processes of another node ended"):
        train(main, method="lora")
    node.join(60)
    assert "node 1: node 0 trains with other data (the same" in capfd.readouterr().err
    assert not main.output.exists()


CASES: list[tuple[str, str, dict[str, Any]]] = [
    *(
        (method, "sft", {})
        for method in ("qlora", "dora", "loraplus", "pissa", "olora", "ia3", "ln_tuning", "bitfit", "freeze", "full")
    ),
    ("lora", "pretrain", {"cutoff_length": 32}),
    ("qlora", "sft", {"keep_4bit": True}),
    ("full", "sft", {"compute_type": "bf16"}),
    ("full", "sft", {"optimizer": "schedule-free", "scheduler": "constant"}),
    *(
        ("lora", "sft", more)
        for more in (
            {"packing": True, "cutoff_length": 64}, {"offload_weights": True},
            {"checkpoint_activations": True}, {"shared_prefix": False}, {"group_by_length": False},
            {"train_on_inputs": True}, {"add_tokens": ("<x>", "<y>")},
            {"keep_best": True, "save_every": 2, "eval_every": 2},
            {"early_stopping": 1, "eval_every": 2, "learning_rate": 1.0},
        )
    ),
    *(
        ("full", "sft", {"optimizer": name, "learning_rate": 1e-3})
        for name in ("adamw-8bit", "adafactor", "lion", "muon", "galore", "sgd")
    ),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize(("method", "objective", "more"), CASES)
def test_every_method_and_optimizer_has_the_losses_of_one_process(
    options: TrainOptions, tmp_path: Path, method: str, objective: str, more: dict[str, Any]
) -> None:
    if objective == "pretrain":
        texts = tmp_path / "texts.jsonl"
        rows = (json.dumps({"text": "the lamp is on " * (i % 5 + 3)}) for i in range(40))
        texts.write_text("\n".join(rows))
        more = {**more, "data": texts}
    run = dataclasses.replace(options, **more)
    one, two = (
        train(dataclasses.replace(run, output=tmp_path / str(count), processes=count), method=method, objective=objective).facts
        for count in (1, 2)
    )  # fmt: skip
    for curve in ("loss", "validation_loss"):
        tolerance = 10 * LOSS_TOLERANCE if "compute_type" in more else LOSS_TOLERANCE
        np.testing.assert_allclose(two[curve], one[curve], atol=tolerance, err_msg=curve)
    assert one.get("kept_step") == two.get("kept_step")


def in_session(session: int) -> list[int]:
    """Processes of a session, without those that have ended."""
    stats = [stat for path in Path("/proc").glob("[0-9]*/stat") if (stat := _text(path))]
    fields = [(int(stat.split()[0]), stat.rpartition(")")[2].split()) for stat in stats]
    return [pid for pid, rest in fields if int(rest[3]) == session and rest[0] != "Z"]


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it has ended
        return ""


@pytest.mark.slow
def test_the_command_prints_one_result_and_ctrl_c_and_a_kill_leave_no_process(
    options: TrainOptions, tmp_path: Path
) -> None:
    output = tmp_path / "adapter"
    command = [
        sys.executable, "-m", "edgeft", "train", "--method", "lora", "--base", options.base,
        "--data", options.data, "--output", output, "--batch-size", 4, "--steps", 2000,
        "--save-every", 4, "--eval-every", 1000, "--compute-type", "fp32", "--processes", 2, "--json",
        "--eval-items", options.data, "--eval-limit", 2,
    ]  # fmt: skip

    def start(*more: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(word) for word in (*command, *more)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def until_checkpoint(run: subprocess.Popen[str], after: int) -> int:
        deadline = time.monotonic() + 400
        while time.monotonic() < deadline and run.poll() is None:
            steps = [int(p.name[11:]) for p in output.with_name("adapter.work").glob("checkpoint-*") if (p / "whole.json").exists()]  # fmt: skip
            if max(steps, default=0) > after:
                return max(steps)
            time.sleep(0.05)
        pytest.fail(f"no checkpoint after {after}: {run.communicate()[1] if run.poll() else ''}")

    run = start()
    step = until_checkpoint(run, 0)
    assert len(in_session(run.pid)) >= 3
    os.killpg(run.pid, signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert (run.returncode, out) == (130, "") and "--resume goes on" in err, err
    assert "Traceback" not in err and not in_session(run.pid) and not output.exists()

    run = start("--resume")
    step = until_checkpoint(run, step)
    run.kill()
    run.communicate(timeout=60)
    deadline = time.monotonic() + 20
    while in_session(run.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not in_session(run.pid), "the kernel ends the ranks with their parent"

    command[command.index(2000)] = step + 8  # other options: from the beginning
    run = start("--overwrite")
    out, err = run.communicate(timeout=500)
    assert run.returncode == 0, err
    result = json.loads(out)
    assert result["processes"]["parallel"] == "ddp" and result["adapter"] == str(output)
    assert len(result["accuracy"]["curve"]) == 1 and result["steps"] == step + 8
    assert not output.with_name("adapter.work").exists()
