"""Parsed options -> a run, and the command line that gives the same run again."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click
import pytest

from edgeft.cli.train import command
from edgeft.errors import InputError
from edgeft.train.resolve import resolve_run

NOT_OF_A_RUN = (
    "preview", "show_config", "resume", "overwrite", "as_json", "items", "scorer", "limit", "max_memory", "max_disk",
)  # fmt: skip


def parsed(*words: object) -> dict[str, Any]:
    context = command.make_context("train", [str(word) for word in words])
    return {key: value for key, value in context.params.items() if key not in NOT_OF_A_RUN}


def test_the_command_of_a_run_gives_the_same_run(
    tiny_base: Path, tiny_chats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    common = ("--base", tiny_base, "--data", tiny_chats, "--output", "out-1.0")
    for words in (
        (),
        ("--method", "full", "--steps", 3, "--learning-rate", 1e-3, "--batch-size", 4),
        ("--method", "qlora", "--no-double-quant", "--warmup-ratio", 0.2, "--packing",
         "--target-modules", "q_proj,v_proj", "--validation-data", tiny_chats,
         "--micro-batch-size", "auto", "--columns", "prompt=a b,answer=c"),
    ):  # fmt: skip
        run = resolve_run(parsed(*common, *words))
        edgeft, train, *again = shlex.split(run.command())
        assert (edgeft, train) == ("edgeft", "train")
        monkeypatch.chdir("/")
        assert resolve_run(parsed(*again)) == run
        monkeypatch.chdir(tmp_path)


def test_defaults_of_the_method_and_of_the_batch(tiny_base: Path, tiny_chats: Path) -> None:
    common = ("--base", tiny_base, "--data", tiny_chats, "--output", "out", "--batch-size", 12)
    run = resolve_run(parsed(*common, "--method", "full"))
    assert (run.options.learning_rate, run.options.micro_batch_size) == (5e-5, 12)
    assert run.options.output == Path.cwd() / "out"
    with pytest.raises(InputError, match="no training objective 'sftt'"):
        resolve_run(parsed(*common, "--objective", "sftt"))
    with pytest.raises(click.MissingParameter):
        parsed("--base", tiny_base)
