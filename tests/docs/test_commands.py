"""The commands of README.md and docs/: blocks marked console are run, all others are parsed."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from conftest import Ran

from edgeft.benchmarks.suites import load_suite
from edgeft.cli import COMMANDS, group
from helpers.docs import DOCS, SEPARATORS, SHELLS, blocks, edgeft_commands, manual, spans

BASE = "smollm2-135m"
CHATS, ITEMS = 40, 12
"""rows of the data files that the commands read"""


def named(paths: list[Path]) -> list[object]:
    return [pytest.param(path, id=str(path.relative_to(DOCS.parent))) for path in paths]


def command_named(name: str) -> click.Command:
    command = group.get_command(click.Context(group), name)
    assert command is not None, f"there is no edgeft {name}"
    return command


def options_of(name: str) -> set[str]:
    """Options of a command; of a group those of all its commands."""
    command = command_named(name)
    commands = command.commands.values() if isinstance(command, click.Group) else [command]
    params = [param for one in commands for param in one.params]
    known = {text for param in params for text in (*param.opts, *param.secondary_opts)}
    return known | {"-h", "--help"}


def parse(args: list[str]) -> None:
    """ClickException, or a failed assertion, for what edgeft would not take."""
    name, *rest = args
    if args in (["--version"], ["--help"]):
        return
    with contextlib.suppress(click.exceptions.Exit):  # --list prints and ends
        context = command_named(name).make_context(name, rest)
        if isinstance(context.command, click.Group):
            own, command, rest = context.command.resolve_command(context, rest)
            assert own and command
            command.make_context(own, rest, parent=context)


@pytest.mark.unit
@pytest.mark.parametrize("page", named(manual()))
def test_every_command_parses(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text("")
    for block in blocks(page):
        lines = block.lines
        if page == DOCS / "cli.md":
            lines = [line for line in lines if line.startswith("  edgeft ")]
        elif block.language not in SHELLS:
            assert not re.search(r"^edgeft ", block.text, re.MULTILINE), "mark it console or sh"
            continue
        for line in lines:
            for args in edgeft_commands(line):
                try:
                    parse(args)
                except click.ClickException as error:
                    pytest.fail(f"{line}: {error.format_message()}")


@pytest.mark.unit
@pytest.mark.parametrize("page", named(manual()))
def test_commands_and_options_in_the_text_exist(page: Path) -> None:
    every = {option for name in COMMANDS for option in options_of(name)} | {"--version"}
    for span in spans(page):
        words = span.removeprefix("edgeft ").split()
        used = {word.partition("=")[0] for word in words if word.startswith("--")}
        if span.startswith("--"):
            assert used <= every, f"`{span}`: no such option"
        elif words[0] in COMMANDS:
            assert used <= options_of(words[0]), f"`{span}`: no such option"
        elif span.startswith("edgeft "):
            assert words[0].startswith("--"), f"`{span}`: no such command"


@pytest.mark.unit
def test_an_option_that_does_not_exist_is_refused() -> None:
    with pytest.raises(click.NoSuchOption):
        parse(["merge-export", "--out", "out", "--quantum", "q4_0"])
    with pytest.raises(click.BadParameter):
        parse(["bench", "a.gguf", "--runs", "1"])
    with pytest.raises(AssertionError, match="there is no edgeft mergeexport"):
        parse(["mergeexport"])


def runnable() -> list[str]:
    """The lines of console blocks that call edgeft, or make a key, in the order of the pages, each once."""
    lines = [
        line
        for page in manual()
        for block in blocks(page)
        if block.language == "console"
        for line in block.lines
        if line.startswith("openssl ") or any(edgeft_commands(line))
    ]
    return list(dict.fromkeys(lines))


def in_shell(command: str) -> Ran:
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    return Ran(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("model", ["tiny", pytest.param("embedded", marks=pytest.mark.slow)])
def test_the_commands_run_as_printed(
    model: str, tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch,
    edgeft: Callable[..., Ran],
) -> None:  # fmt: skip
    """On the embedded model word for word; on a tiny one with its path in place of the name, and
    without a shell where the line needs none."""
    suite = load_suite("smart_home")
    for name, rows, source in (("chats", CHATS, suite.train), ("items", ITEMS, suite.test)):
        lines = source.read_text(encoding="utf-8").splitlines()[:rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    commands = runnable()
    assert len(commands) >= 10
    if model == "tiny":
        commands = [command.replace(BASE, str(tiny_base)) for command in commands]
        assert sum(str(tiny_base) in command for command in commands) == 1
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    outputs: dict[str, str] = {}
    for command in commands:
        program, *args = shlex.split(command)
        plain = model == "tiny" and program == "edgeft" and not {*SEPARATORS, "<"} & {*args}
        ran = edgeft(*args) if plain else in_shell(command)
        # Twelve items cannot decide anything: the gate has to say so.
        expected = 4 if " ab " in command else 0
        assert ran.code == expected, f"{command}\n{ran.err}"
        outputs[command] = ran.out
    for name, text in (("chat", ""), ("ab", "INCONCLUSIVE"), ("inspect out", "llama")):
        answers = [out for command, out in outputs.items() if f"edgeft {name}" in command]
        assert answers and all(out.strip() and text in out for out in answers), name
    assert (tmp_path / "page" / "report.html").is_file()
