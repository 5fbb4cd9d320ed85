"""Options by their old names: accepted with a note, on the command line and in a config file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from edgeft.cli import group
from edgeft.cli._old_names import OLD_NAMES, current_args

pytestmark = pytest.mark.unit

ALL = [(command, *pair) for command, names in OLD_NAMES.items() for pair in names.items()]


def command_named(name: str) -> click.Command:
    command = group.get_command(click.Context(group), name)
    assert command is not None
    return command


@pytest.mark.parametrize(("name", "old", "new"), ALL)
def test_an_old_name_is_replaced_with_a_note(
    name: str, old: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = command_named(name)
    assert current_args(command, ["first", *old.split()]) == ["first", *new.split()]
    note = f"edgeft: {old} is now called {new}; the old name goes away in the next version\n"
    assert capsys.readouterr().err == note
    assert current_args(command, new.split()) == new.split()
    assert not capsys.readouterr().err


@pytest.mark.parametrize(("name", "old", "new"), ALL)
def test_the_help_has_the_new_name_alone(name: str, old: str, new: str) -> None:
    command = command_named(name)
    known = {opt for param in command.params for opt in (*param.opts, *param.secondary_opts)}
    assert new.split()[0] in known
    assert len(old.split()) == 2 or old not in known


def parsed(name: str, *args: object) -> dict[str, Any]:
    command = command_named(name)
    context = command.make_context(name, current_args(command, [str(arg) for arg in args]))
    return context.params


def test_values_go_with_their_options() -> None:
    for args in (("--merge-base", "w16"), ("--merge-base=w16",), ("--base-precision", "stored")):
        assert parsed("merge-export", "--out", "x", *args)["base_precision"] == "stored"
    assert parsed("merge-export", "--out", "x", "--merge-base", "nf4")["base_precision"] == "nf4"
    assert parsed("serve", "m.gguf", "--grace=2")["shutdown_timeout"] == 2
    assert parsed("bench", "m.gguf", "--through", "server")["via"] == "server"
    assert (
        parsed("ab", "a", "b", "--items", "i", "--keeps", ".5", "--floor")["repeat_baseline"]
        is True
    )


def test_only_options_are_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    command = command_named("chat")
    for args in (["--system", "--exact"], ["--system=--exact"], ["--", "--exact"], ["exact"],
                 ["--system", "", "m.gguf"]):  # fmt: skip
        assert current_args(command, args) == args
    assert not capsys.readouterr().err


def test_a_config_file_may_have_old_names(edgeft: Callable[..., Any], tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text("[merge-export]\nmerge_base = 'w16'\nlive = false\nquant = 'q9'\n")
    ran = edgeft("merge-export", "--config", config, "--out", tmp_path / "out")
    assert ran.code == 1 and "no quantization 'q9'" in ran.err
    notes = [line.split(";")[0] for line in ran.err.splitlines()[:-1]]
    assert notes == [
        "edgeft: --merge-base is now called --base-precision",
        "edgeft: --base-precision w16 is now called --base-precision stored",
        "edgeft: --live is now called --compare-live",
    ]


def test_a_config_file_may_turn_a_flag_off_by_its_name(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text("no-browser = true\nno-speed = false\n")
    params = parsed("ab", "a", "b", "--items", "i", "--config", config)
    assert params["browser"] is False and params["speed"] is True
