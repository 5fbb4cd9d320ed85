"""Forms made of the click commands, and the command lines and TOML files made of forms."""

from __future__ import annotations

import shlex
import tomllib
from pathlib import Path

import click
import pytest

from edgeft.cli import COMMANDS, group
from edgeft.cli._forms import form_of, problem_of
from edgeft.errors import InputError
from edgeft.studio.forms import command_words, shell_line, toml_table

pytestmark = pytest.mark.unit


def names() -> list[str]:
    """Every command, those of groups by both words."""
    found = []
    for name in COMMANDS:
        command = group.get_command(click.Context(group), name)
        inner = command.commands if isinstance(command, click.Group) else [""]
        found += [f"{name} {one}".strip() for one in inner]
    return found


@pytest.mark.parametrize("name", names())
def test_every_command_has_a_form_with_its_options(name: str) -> None:
    form = form_of(name)
    assert form.help and form.words == tuple(name.split())
    for field in form.fields:
        assert field.help or not field.flag, f"{field.flag} has no help"
        assert (field.kind == "choice") == bool(field.choices)
    assert command_words(form, {}) == list(form.words), "a form that says nothing types nothing"


def test_what_differs_from_the_default_is_typed() -> None:
    form = form_of("train")
    values = {
        "base": "smollm2-135m", "data": "my chats.jsonl", "output": "adapter", "lora_r": "16", "epochs": "2",
        "double_quant": False, "packing": True, "use_dora": False, "target_modules": ["q_proj", "v_proj"],
        "learning_rate": "", "ship_steps": "-1",
    }  # fmt: skip
    words = command_words(form, values)
    assert shlex.split(shell_line(words)) == ["edgeft", *words]
    assert words == [
        "train", "--base", "smollm2-135m", "--data", "my chats.jsonl", "--output", "adapter", "--epochs", "2",
        "--target-modules", "q_proj", "--target-modules", "v_proj", "--no-double-quant", "--packing",
        "--ship-steps=-1",
    ]  # fmt: skip
    table = tomllib.loads(toml_table(form, values))["train"]
    assert table == {
        "base": "smollm2-135m", "data": "my chats.jsonl", "output": "adapter", "epochs": 2,
        "target-modules": ["q_proj", "v_proj"], "double-quant": False, "packing": True, "ship-steps": -1,
    }  # fmt: skip


def test_arguments_stand_on_the_line_and_not_in_the_file() -> None:
    form = form_of("data check")
    values = {"data": ["a.jsonl", "-b.jsonl"], "near": "0.9"}
    assert command_words(form, values) == [
        "data",
        "check",
        "--near",
        "0.9",
        "--",
        "a.jsonl",
        "-b.jsonl",
    ]
    assert tomllib.loads(toml_table(form, values)) == {"data": {"check": {"near": 0.9}}}


@pytest.mark.parametrize("text", ['a "b" \\ c', "中文\n", "a\tb\x7f", "\ud83d", "x\0y"])
def test_any_text_is_quoted(text: str) -> None:
    values = {"base": text, "data": "d"}
    base = tomllib.loads(toml_table(form_of("train"), values).encode("utf-8", "replace").decode())
    assert base["train"]["base"] == text.replace("\0", "").strip().replace("\ud83d", "?")


def test_the_command_line_checks_the_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    good = ["train", "--base", "b", "--data", "d", "--output", "o"]
    assert problem_of(good) == ""
    assert "--lora-r" in problem_of([*good, "--lora-r", "0"])
    assert problem_of(["train"]).startswith("Missing option")
    assert problem_of(["data", "check"]).startswith("Missing argument")
    assert "prints and runs nothing" in problem_of([*good, "--list"])
    with pytest.raises(KeyError):
        form_of("rm")
    with pytest.raises(KeyError):
        form_of("data")
    with pytest.raises(InputError, match="no lora_rank"):
        command_words(form_of("train"), {"lora_rank": "8"})
