"""Click options made of dataclasses: names, types, defaults and helps, and what `--help` imports."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click
import pytest
from click.testing import CliRunner

from edgeft.benchmarks.options import BenchOptions, Effort, EvalOptions
from edgeft.chat.options import ChatOptions
from edgeft.cli import COMMANDS, group
from edgeft.cli._options import build, comma_list, field_helps, options_of
from edgeft.export.options import ExportOptions
from edgeft.human.options import VotingOptions
from edgeft.release.options import GateOptions, SearchOptions
from edgeft.server.options import ServeOptions
from edgeft.train.options import TrainOptions
from helpers.paths import ROOT

OPTIONS: dict[str, tuple[type[Any], ...]] = {
    "train-qlora": (TrainOptions,),
    "train": (TrainOptions,),
    "merge-export": (ExportOptions,),
    "search": (EvalOptions, ExportOptions, SearchOptions),
    "chat": (ChatOptions,),
    "serve": (ServeOptions,),
    "bench": (EvalOptions, BenchOptions, Effort),
    "ab": (EvalOptions, GateOptions, VotingOptions),
}
"""command -> dataclasses that its options are made of"""
DERIVED = {
    "base",  # a path of TrainOptions, which the command finds
    "micro_batch_size",  # by default the batch size
    "learning_rate",  # of train: by default the method's
    "calibration", "group_size",  # auto on the command line, None in the dataclass
    "threads",  # of search: for the export and for the answers
}  # fmt: skip
"""fields whose option has another default"""
HEAVY = ("torch", "transformers", "peft", "datasets", "llama_cpp", "gguf", "tokenizers", "numpy")


@dataclass(frozen=True)
class Sample:
    """What the decorator has to translate."""

    path: Path
    """Folder,
    of something."""
    count: int = 3
    share: float | None = None
    """Between 0 and 1."""
    mode: Literal["fast", "slow"] = "slow"
    names: tuple[str, ...] = ()
    on: bool = True
    off: bool = False
    zero: int = 0
    label: str | None = None


def made(**changes: Any) -> click.Command:
    @click.command("sample")
    @options_of(Sample, **changes)
    def command(**options: Any) -> None:
        click.echo(repr(build(Sample, options)))
        assert not options

    return command


def run(command: click.Command, *args: str) -> Any:
    return CliRunner().invoke(command, args)


def test_options_have_the_names_types_and_defaults_of_the_fields() -> None:
    assert run(made(), "--path", "x").output == f"{Sample(Path('x'))!r}\n"
    given = ("--path", "x", "--count", "4", "--share", ".5", "--mode", "fast", "--names", "a,b",
             "--names", "c", "--no-on", "--off", "--label", "l")  # fmt: skip
    wanted = Sample(Path("x"), 4, 0.5, "fast", ("a", "b", "c"), False, True, 0, "l")
    assert run(made(), *given).output == f"{wanted!r}\n"


@pytest.mark.parametrize(
    "args",
    [(), ("--path", "x", "--count", "few"), ("--path", "x", "--share", "nan"),
     ("--path", "x", "--mode", "quick")],
)  # fmt: skip
def test_a_missing_or_wrong_value_is_wrong_usage(args: tuple[str, ...]) -> None:
    assert run(made(), *args).exit_code == 2


def test_help_shows_the_string_after_the_field_and_its_default() -> None:
    text = run(made(), "--help").output
    for part in ("Folder, of something.  [required]", "Between 0 and 1.", "[default: 3]",
                 "[default: 0]", "[default: slow]", "[default: on]", "--on / --no-on"):  # fmt: skip
        assert part in text
    assert text.count("default") == 4, "None, () and a flag that is off show no default"


def test_changes_give_another_name_and_a_range() -> None:
    command = made(
        count=click.IntRange(1, 5),
        share={"name": "--part", "type": click.FloatRange(0, 1)},
        off={"name": "--off/--no-off"},
        skip=("label",),
    )
    assert "count=5" in run(command, "--path", "x", "--count", "5").output
    assert "share=0.5" in run(command, "--path", "x", "--part", ".5", "--no-off").output
    for wrong in (("--count", "6"), ("--part", "2"), ("--part", "nan"), ("--label", "l"),
                  ("--share", ".5")):  # fmt: skip
        assert run(command, "--path", "x", *wrong).exit_code == 2


def test_only_the_named_fields_become_options() -> None:
    assert [param.name for param in made(only=("path", "count")).params] == ["path", "count"]


@pytest.mark.parametrize("changes", [{"cuont": click.INT}, {"skip": ("cuont",)}])
def test_an_unknown_field_is_an_error(changes: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="Sample has no field cuont"):
        options_of(Sample, **changes)


def command_named(name: str) -> click.Command:
    command = group.get_command(click.Context(group), name)
    assert command is not None
    return command


@pytest.mark.parametrize("name", OPTIONS)
def test_defaults_are_those_of_the_dataclass(name: str) -> None:
    params = {param.name: param for param in command_named(name).params}
    fields = [field for cls in OPTIONS[name] for field in dataclasses.fields(cls)]
    compared = [field for field in fields if field.name in params and field.name not in DERIVED]
    assert len(compared) > 8
    for field in compared:
        missing = field.default is dataclasses.MISSING
        assert params[field.name].required == missing or field.name == "items"
        assert missing or params[field.name].default == field.default, field.name


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_has_a_help(name: str) -> None:
    options = [param for param in command_named(name).params if isinstance(param, click.Option)]
    assert not [option.name for option in options if not option.help]


@pytest.mark.parametrize(
    "cls", dict.fromkeys(cls for classes in OPTIONS.values() for cls in classes)
)
def test_every_default_is_explained_after_its_field(cls: type[Any]) -> None:
    helps = field_helps(cls)
    explained = {"artifacts", "artifact", "candidates", "baseline", "effort", *helps}
    assert not [f.name for f in dataclasses.fields(cls) if f.name not in explained]


def test_help_of_every_command_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom edgeft.cli import COMMANDS, group\n"
        "for args in ([], *([name] for name in COMMANDS)):\n"
        "    group.main([*args, '--help'], prog_name='edgeft', standalone_mode=False)\n"
        f"    print('HEAVY', sorted(set(sys.modules) & set({HEAVY!r})))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("HEAVY []") == 1 + len(COMMANDS), done.stdout


def test_the_root_help_imports_no_command() -> None:
    code = "import sys\nfrom edgeft.cli import group\n" \
           "group.main(['--help'], prog_name='edgeft', standalone_mode=False)\n" \
           "print(sorted(name for name in sys.modules if name.startswith('edgeft.') and 'cli' not in name))"  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert "docs/" in done.stdout
    assert (
        done.stdout.splitlines()[-1] == "['edgeft.errors', 'edgeft.printable', 'edgeft.progress']"
    )


@pytest.mark.parametrize("name", OPTIONS)
def test_nan_is_no_number(edgeft: Callable[..., Any], name: str) -> None:
    floats = (click.FloatRange, type(click.FLOAT))
    for param in command_named(name).params:
        if isinstance(param.type, floats):
            ran = edgeft(name, param.opts[0], "nan")
            assert ran.code == 2 and "nan is not a finite number" in ran.err, ran.err


@pytest.mark.parametrize(("typed", "values"), [
    (["rank=64,update_proj_gap=50"], ("rank=64", "update_proj_gap=50")),
    (["betas=(0.9,0.95),eps=1e-6", "a = [1, 2] "], ("betas=(0.9,0.95)", "eps=1e-6", "a = [1, 2]")),
    (["q_proj, v_proj,"], ("q_proj", "v_proj")),
    ([r"(a|b),c"], ("(a|b)", "c")),
])  # fmt: skip
def test_commas_in_brackets_separate_no_values(typed: list[str], values: tuple[str, ...]) -> None:
    @click.command()
    @click.option("--words", multiple=True, callback=comma_list)
    def command(words: tuple[str, ...]) -> None:
        assert words == values

    line = [word for text in typed for word in ("--words", text)]
    CliRunner().invoke(command, line, catch_exceptions=False)
