"""`edgeft sweep`: what a file may say, what is refused before a trial, and whole sweeps of a tiny model."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from edgeft import store
from edgeft.cli import group
from edgeft.cli._sweep_file import read_run
from edgeft.errors import InputError
from edgeft.sweep.options import Range
from helpers.paths import DOCS, ROOT

Run = Callable[..., Any]
RUN = """
data = "chats.jsonl"
base = "base"
method = "lora"
steps = 8
batch-size = 4
eval-every = 2
save-every = 1
compute-type = "fp32"
validation-size = 8
threads = "1"
"""


@pytest.fixture
def file(tmp_path: Path, tiny_base: Path, tiny_chats: Path) -> Path:
    """A file for `edgeft train --config`, beside its base and its data."""
    (tmp_path / "base").symlink_to(tiny_base)
    (tmp_path / "chats.jsonl").symlink_to(tiny_chats)
    path = tmp_path / "run.toml"
    path.write_text(RUN)
    return path


def parsed(path: Path, *words: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """(options of sweep, parameters of train, space) of a file."""
    command = group.get_command(click.Context(group), "sweep")
    assert command is not None
    parent = click.Context(group, info_name="edgeft")
    context = command.make_context("sweep", [str(path), *words], parent=parent)
    return context.params, *read_run(context, path)


def test_lists_and_ranges_belong_to_train_and_other_keys_to_sweep(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    file.write_text(
        RUN + "[sweep]\nlearning-rate = {low = 1e-5, high = 1e-3, log = true}\n"
        "lora_r = {low = 4, high = 64}\nuse-dora = [true, false]\nseed = 3\noutput = 'out'\n"
        "data = ['chats.jsonl', '/b.jsonl']\ntarget-modules = ['all-linear', ['q_proj', 'v_proj']]\n"
    )
    options, run, space = parsed(file, "--trials", "9")
    assert (options["seed"], options["trials"], options["output"]) == (3, 9, file.parent / "out")
    assert space == {
        "learning_rate": Range(1e-5, 1e-3, log=True),
        "lora_r": Range(4, 64, whole=True),
        "use_dora": (True, False),
        "data": (file.parent / "chats.jsonl", Path("/b.jsonl")),
        "target_modules": (("all-linear",), ("q_proj", "v_proj")),
    }
    assert run["steps"] == 8 and run["base"] == str(file.parent / "base") and run["seed"] == 0


def test_a_list_of_seeds_is_swept_and_required_options_may_be(file: Path) -> None:
    file.write_text(
        RUN.replace('base = "base"\n', "") + "[sweep]\nseed = [0, 1]\nbase = ['base', 'a/b']\n"
    )
    options, _, space = parsed(file, "--output", "out")
    assert options["seed"] == 0 and space["seed"] == (0, 1)
    assert space["base"] == (str(file.parent / "base"), "a/b")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "sweeps nothing"),
        ("learnin-rate = [1e-4]", "unknown key 'learnin-rate' .did you mean 'learning-rate'"),
        ("trails = 3", "unknown key 'trails' .did you mean 'trials'"),
        ("lora-r = 8", r"lora-r is one value \(lora-r = \[8\]"),
        ("lora-r = []", "lora-r is an empty list"),
        ("lora-r = [8, 8]", "names a value twice"),
        ("lora-r = [8, 'many']", "--lora-r.*'many' is not a valid integer"),
        ("lora-r = [0]", "--lora-r.*x>=1"),
        ("learning-rate = [nan]", "not a finite number"),
        ("output = ['a', 'b']", "output is the same for all trials"),
        ("eval-every = [1, 2]", "eval-every is the same for all trials"),
        ("lora-r = {low = 4, hihg = 8}", "unknown key 'hihg' .did you mean 'high'"),
        ("lora-r = {low = 4}", "no low and high"),
        ("lora-r = {low = 8, high = 4}", "low 8 is not below high 4"),
        ("warmup-ratio = {low = 0, high = 0.1, log = true}", "begins above 0"),
        ("lora-r = {low = 4.5, high = 8}", "'4.5' is not a valid integer"),
        ("method = {low = 1, high = 2}", "method is no number"),
        ("learning-rate = {low = 1e-5, high = 1e-3}\nsampler = 'grid'", "a grid needs lists"),
        ("sampler = 'gird'", "'gird' is not one of"),
        ("method = ['lora', 'lorra']", "method lorra: no training method 'lorra'"),
        (
            "lora-r = [4, 8]\nmethod = ['lora', 'full']",
            "lora-r 4, method full: --lora-r is not for",
        ),
        ("seed = [0, 1]", "seed: the trials would compute their validation loss on other tokens"),
        ("lora-r = [4]\nmeasure = 'accuracy'", "--measure accuracy needs items"),
    ],
)
def test_faults_of_a_file_are_one_line_before_any_work(
    edgeft: Run, file: Path, table: str, message: str
) -> None:
    file.write_text(f"{RUN}[sweep]\n{table}\n")
    ran = edgeft("sweep", file, "--output", file.parent / "out")
    assert ran.code in (1, 2) and re.search(message, ran.err), ran.err
    assert not ran.out and not (file.parent / "out").exists()
    if ran.code == 1:
        assert ran.err.count("\n") == 1


def test_the_file_of_the_manual_is_read(tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", (DOCS / "sweep.md").read_text(), re.DOTALL)
    (tmp_path / "run.toml").write_text(text)
    options, run, space = parsed(tmp_path / "run.toml", "--output", "out")
    assert options["trials"] == 20 and run["epochs"] == 2
    assert list(space) == ["learning_rate", "lora_r", "weight_decay", "data"]
    assert space["weight_decay"] == Range(0.001, 0.1, log=True)


def test_no_file_and_no_toml(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        parsed(tmp_path / "none.toml")
    (tmp_path / "run.toml").write_text("sweep = 3")
    with pytest.raises(InputError, match="sweep is 3"):
        parsed(tmp_path / "run.toml")


# Whole sweeps: each trial is a training in a process of its own.

RATES = "[sweep]\nlearning-rate = [1e-6, 3e-3, 1e-2]\n"


def start(file: Path, output: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "edgeft", "sweep", str(file), "--output", str(output), *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True,
    )  # fmt: skip


def wait_for(path: Path) -> None:
    until = time.monotonic() + 300
    while not path.exists():
        assert time.monotonic() < until, f"{path} does not come"
        time.sleep(0.01)


def processes_with(text: str) -> list[str]:
    """Ids of processes whose stderr goes to a file of a sweep's output: its trials."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                if text in os.readlink(process / "fd/2"):
                    found.append(process.name)
            except OSError:
                continue
    return found


def sweep_json(output: Path) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads((output / "sweep.json").read_text())
    return raw


@pytest.mark.slow
def test_a_killed_and_an_interrupted_sweep_go_on_to_the_same_end(file: Path) -> None:
    file.write_text(RUN + RATES)
    whole, cut = file.parent / "whole", file.parent / "cut"
    process = start(file, whole, "--json")
    out, err = process.communicate()
    assert process.returncode == 0, err
    result = json.loads(out)
    statuses = {t["values"]["learning_rate"]: t["status"] for t in result["trials"]}
    assert statuses == {1e-6: "complete", 3e-3: "pruned", 1e-2: "complete"}
    assert result["best"]["values"] == {"learning_rate": 1e-2}
    manifest = store.read_manifest(whole / "best")
    assert manifest and manifest.options["learning_rate"] == 1e-2
    points = manifest.facts["validation_loss"]
    assert result["best"]["curve"] == points and result["best"]["score"] == points[-1][1]
    names = {path.name for path in (whole / "trials").iterdir()}
    kept = f"{result['best']['number']:03d}"
    assert names == {kept, *(f"{n:03d}.{end}" for n in range(3) for end in ("json", "log"))}

    process = start(file, cut)
    wait_for(cut / "trials" / "000.work" / "checkpoint-1")
    process.kill()  # its trial ends with it
    process.wait()
    until = time.monotonic() + 60
    while processes_with(str(cut)):
        assert time.monotonic() < until, "the trial outlives the sweep"
        time.sleep(0.1)
    assert json.loads((cut / "trials/000.json").read_text())["status"] == "running"

    process = start(file, cut)
    wait_for(cut / "trials" / "001.work" / "checkpoint-2")
    os.killpg(process.pid, signal.SIGINT)  # Ctrl-C reaches every process of a terminal
    _, err = process.communicate()
    assert process.returncode == 130 and "the same command goes on from here" in err, err
    assert "Traceback" not in err + (cut / "trials/001.log").read_text()
    assert not processes_with(str(cut)) and not list((cut / "trials").glob(".*partial*"))
    first = (cut / "trials/000.json").stat().st_mtime_ns

    process = start(file, cut)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert (cut / "trials/000.json").stat().st_mtime_ns == first, "a complete trial runs once"
    assert sweep_json(cut)["trials"] == sweep_json(whole)["trials"]
    assert [path.name for path in (cut / "trials").glob("*.work")] == []


@pytest.mark.slow
@pytest.mark.parametrize("words", [("--jobs", "2"), ("--ray", "local")])
def test_trials_side_by_side_find_the_same_winner(file: Path, words: tuple[str, ...]) -> None:
    file.write_text(RUN + RATES + "pruner = 'none'\n")
    process = start(file, file.parent / "out", "--json", *words)
    out, err = process.communicate()
    assert process.returncode == 0, err
    result = json.loads(out)
    assert [trial["status"] for trial in result["trials"]] == ["complete"] * 3
    assert result["best"]["values"] == {"learning_rate": 1e-2}
    assert store.read_manifest(Path(result["adapter"]))
