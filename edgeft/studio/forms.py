"""A command's options as fields, and the values of a form -> the command line and the TOML that it stands for.

    words = command_words(form, {"data": "chats.jsonl", "lora_r": "8"})
    shell_line(words)       # edgeft train --data chats.jsonl --lora-r 8

Forms are made of the commands themselves (`edgeft.cli._forms`), so an option is described once.
"""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgeft.errors import InputError, did_you_mean

Values = Mapping[str, str | bool | list[str]]
"""parameter -> what the form holds: a text, "" = the default; several texts; whether a box is ticked"""


@dataclass(frozen=True)
class Field:
    """One option or argument."""

    name: str
    """of the parameter, such as lora_r"""
    flag: str
    """such as --lora-r; "" for an argument"""
    off_flag: str = ""
    """such as --no-double-quant, of a switch that is on by default"""
    kind: Literal["text", "integer", "number", "choice", "switch"] = "text"
    many: bool = False
    """whether it takes several values"""
    required: bool = False
    default: str | bool | tuple[str, ...] = ""
    default_text: str = ""
    """what the help says of a default that is not one value, such as "the batch size" """
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    help: str = ""

    @property
    def label(self) -> str:
        """lora_r -> "Lora r"."""
        return (self.flag.lstrip("-").replace("-", " ") or self.name.replace("_", " ")).capitalize()


@dataclass(frozen=True)
class CommandForm:
    """One command."""

    words: tuple[str, ...]
    """its name: ("train",) or ("data", "check")"""
    help: str
    """its first sentence"""
    fields: tuple[Field, ...]
    has_json: bool = False
    """whether --json makes its output one JSON object"""
    has_config: bool = False
    """whether --config takes a TOML file"""

    def field(self, name: str) -> Field | None:
        return next((field for field in self.fields if field.name == name), None)


@dataclass(frozen=True)
class Commands:
    """The commands of the floor above."""

    form: Callable[[str], CommandForm]
    """name such as "data check" -> its form; KeyError for none"""
    problem: Callable[[Sequence[str]], str]
    """words after `edgeft` -> why the command line refuses them, "" where it takes them"""


def command_words(form: CommandForm, values: Values) -> list[str]:
    """The words after `edgeft`: arguments first, then each option that differs from its default.

    InputError for a field that the command does not have.
    """
    known = {field.name for field in form.fields}
    for name in values:
        if name not in known:
            raise InputError(f"{' '.join(form.words)} has no {name}", did_you_mean(name, known))
    arguments, options = [], []
    for field in form.fields:
        value = values.get(field.name, "")
        if field.kind == "switch":
            options += _switch(field, value)
        elif field.flag:
            options += _option(field, _texts(value))
        else:
            arguments += _texts(value)
    if any(word.startswith("-") for word in arguments):
        return [*form.words, *options, "--", *arguments]
    return [*form.words, *arguments, *options]


def _switch(field: Field, value: str | bool | list[str]) -> list[str]:
    if value == "" or bool(value) == field.default:
        return []
    return [field.flag if value else field.off_flag]


def _option(field: Field, texts: list[str]) -> list[str]:
    default = list(field.default) if isinstance(field.default, tuple) else [field.default]
    if not texts or texts == default:
        return []
    words = []
    for text in texts:
        words += [f"{field.flag}={text}"] if text.startswith("-") else [field.flag, text]
    return words


def _texts(value: str | bool | list[str]) -> list[str]:
    """The values of a field, without empty ones. A zero byte, which no argument can hold, is left out."""
    texts = value if isinstance(value, list) else [str(value)]
    return [text for text in (str(text).replace("\0", "").strip() for text in texts) if text]


def shell_line(words: Sequence[str]) -> str:
    """The command as a person types it."""
    return shlex.join(["edgeft", *words])


def toml_table(form: CommandForm, values: Values) -> str:
    """A table for `--config run.toml`. Arguments stand on the command line and not in the file."""
    lines = [f"[{'.'.join(form.words)}]"]
    for field in form.fields:
        key = field.flag.lstrip("-")
        value = values.get(field.name, "")
        if field.kind == "switch":
            if words := _switch(field, value):
                lines.append(f"{key} = {'true' if words[0] == field.flag else 'false'}")
            continue
        texts = _texts(value)
        if key and _option(field, texts):
            listed = [_toml_value(field, text) for text in texts]
            lines.append(f"{key} = {'[' + ', '.join(listed) + ']' if field.many else listed[0]}")
    return "\n".join(lines) + "\n"


def values_of_toml(form: CommandForm, text: str) -> dict[str, str | bool | list[str]]:
    """What a file for `--config` says of a command, as values of its form; InputError for no TOML.

    Keys that are none of its options are left out here: the command line names them.
    """
    try:
        table: Any = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"this is no TOML: {error}", "lines such as lora-r = 8") from None
    for word in form.words:
        table = table.get(word, {}) if isinstance(table, dict) else {}
    values: dict[str, str | bool | list[str]] = {}
    for key, value in table.items() if isinstance(table, dict) else ():
        flag = "--" + key.replace("_", "-")
        field = next((field for field in form.fields if flag in (field.flag, field.off_flag)), None)
        if field is None:
            continue
        if field.kind == "switch":
            values[field.name] = bool(value) == (flag == field.flag)
        else:
            texts = [str(one) for one in (value if isinstance(value, list) else [value])]
            values[field.name] = texts if field.many else texts[0]
    return values


def _toml_value(field: Field, text: str) -> str:
    if field.kind in ("integer", "number") and re.fullmatch(
        r"-?(0|[1-9]\d*)(\.\d+)?(e[-+]?\d+)?", text
    ):
        return text
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
