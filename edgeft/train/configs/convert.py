"""A YAML file of another trainer -> a TOML for `edgeft COMMAND --config`, with every key accounted for.

    conversion = convert(Path("sft.yaml"), Path("run.toml"), "train-qlora", checks)
    conversion.text             # the TOML
    conversion.not_carried      # {"template": "edgeft uses the base's own chat template"}

`llama_factory.py` and `axolotl.py` each hold one table: the tool's defaults, a row per option of
edgeft, and the keys that need no option. Where a default of the tool differs from edgeft's, the TOML
has the tool's, so that the same training results. A row whose option the command does not have is
reported, so a table may name options before they exist.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeft.data.reading import read_rows
from edgeft.errors import DataError, InputError
from edgeft.files import write_text
from edgeft.train.configs import axolotl, llama_factory
from edgeft.train.configs.read_yaml import read_yaml
from edgeft.train.configs.table import NotCarried, NotNeeded, Part, Place, Row, Tool, shown
from edgeft.train.registry import METHODS, OBJECTIVES

TOOLS = {
    "model_name_or_path": llama_factory.TOOL,
    "base_model": axolotl.TOOL,
}
"""key that every training configuration of the tool has -> the tool"""
OTHERS = {
    "peft_config": "a configuration of LLaMA-Factory's v1 engine, which is still in work",
    "train_dataset": "a configuration of LLaMA-Factory's v1 engine, which is still in work",
    "distributed_type": "settings of accelerate, which describe machines and no training",
    "fsdp_config": "settings of accelerate, which describe machines and no training",
}
"""key -> what a file is that has it and none of TOOLS"""
ALWAYS = {
    "method": "qlora",
    "quantization": "nf4",
    "double-quant": True,
    "objective": "sft",
    "optimizer": "adamw",
    "scheduler": "cosine",
    "weight-decay": 0.0,
    "max-grad-norm": 1.0,
    "neftune-alpha": 0.0,
    "packing": False,
    "report-to": [],
    "checkpoint-activations": False,
    "attention": "auto",
}
"""option -> what edgeft does where the command has no such option"""
NAMES: dict[str, Collection[str]] = {"method": METHODS, "objective": OBJECTIVES}
"""option -> the names that it takes"""
SAME_RESULT = ("checkpoint-activations", "attention")
"""options that change memory and speed alone"""

Checks = Mapping[str, Callable[[Any], str]]
"""option of the command, without -- -> its check: a value -> why it does not take it, "" where it does"""


@dataclass(frozen=True)
class Conversion:
    """The TOML, and what became of each key of the YAML."""

    tool: str
    """name of the tool"""
    text: str
    """the TOML"""
    options: dict[str, Any]
    """option without -- -> value"""
    carried: dict[str, str] = field(default_factory=dict)
    """key -> option"""
    not_carried: dict[str, str] = field(default_factory=dict)
    """key -> why not; with "(default)" after the key where the YAML does not have it"""
    not_needed: dict[str, str] = field(default_factory=dict)
    """key -> why it needs no option"""
    notes: dict[str, str] = field(default_factory=dict)
    """carried key -> what it means in edgeft, where that is not quite the same"""
    data_parts: tuple[Part, ...] = ()
    """what the data file is to be made of (`write_data`); () = it exists already"""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def convert(
    file: Path, target: Path, command: str, checks: Checks, data_out: Path | None = None
) -> Conversion:
    """Read the YAML `file` for a TOML that will lie at `target`; writes nothing.

    `data_out`: where the data may be written that edgeft needs in one file; None = nowhere.

    `command` is the training command that has the options of `checks`. InputError where the file is no
    configuration of a known tool, or of a training that edgeft does not have.
    """
    config = read_yaml(file)
    tool = _tool(file, config)
    why_not = tool.refused(config)
    if why_not:
        raise InputError(f"{file}: {why_not}", "edgeft convert-config reads trainings")
    merged = {**tool.defaults(config), **{k: v for k, v in config.items() if v is not None}}
    outcome = _Outcome(command, checks)
    place = Place(file, target, data_out)
    for row in tool.rows(place):
        outcome.add(row, merged, config)
    if outcome.refused:
        raise InputError(
            f"{file}: {outcome.refused}", f"edgeft {command} --help says what it trains"
        )
    for key, value in _flat(config, tool):
        outcome.add_rest(key, value, tool)
    text = _toml(file, tool, outcome)
    return Conversion(
        tool=tool.name,
        text=text,
        options=outcome.options,
        carried=outcome.carried,
        not_carried=outcome.not_carried,
        not_needed=outcome.not_needed,
        notes=outcome.notes,
        data_parts=tuple(place.parts),
    )


def write_data(parts: Sequence[Part], path: Path) -> int:
    """Write the rows of several data files into one JSONL file, whole or absent; returns their number.

    Raises as `edgeft.data.reading.read_rows`, and DataError for a row that is none.
    """
    lines = []
    for part in parts:
        for line, row in itertools.islice(read_rows(part.path), part.rows):
            if isinstance(row, DataError):
                raise row
            if not isinstance(row, dict):
                raise DataError(part.path, line, "the row is no object")
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))
    return len(lines)


class _Outcome:
    """Collects what becomes of each key, row by row."""

    def __init__(self, command: str, checks: Checks) -> None:
        self.command, self.checks = command, checks
        self.options: dict[str, Any] = {}
        self.comments: dict[str, str] = {}
        """option -> where its value comes from"""
        self.carried: dict[str, str] = {}
        self.not_carried: dict[str, str] = {}
        self.not_needed: dict[str, str] = {}
        self.notes: dict[str, str] = {}
        self.refused = ""

    def add(self, row: Row, merged: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """What becomes of the keys of one row. `merged`: `config` over the tool's defaults."""
        given = [key for key in row.keys if config.get(key) is not None]
        if len(row.keys) > 1:  # a flag that is off says nothing beside the others
            given = [key for key in given if config[key] is not False]
        if not any(key in merged for key in row.keys):
            return
        keys = given or [f"{row.keys[0]} (default)"]
        try:
            value = row.value(*(merged.get(key) for key in (*row.keys, *row.context)))
        except NotCarried as reason:
            self._lose(keys, str(reason))
            return
        except NotNeeded as reason:
            self.not_needed |= dict.fromkeys(given, str(reason))
            return
        if row.option in self.checks:
            why = self.checks[row.option](value)
            if row.option in NAMES and value not in NAMES[row.option]:
                why = f"edgeft has no {row.option} {shown(value)}"
        elif row.option in ALWAYS and value == ALWAYS[row.option]:
            self.not_needed |= dict.fromkeys(given, "edgeft does so without an option")
            return
        else:
            why = f"edgeft {self.command} has no --{row.option}"
            if row.option in ALWAYS:
                why += f" for {shown(value)}: it is always {shown(ALWAYS[row.option])}"
            if row.option in SAME_RESULT:
                why += "; the result is the same"
        if why:
            if row.is_essential(value):
                self.refused = why
            self._lose(keys, why)
            return
        self.options[row.option] = value
        self.comments[row.option] = ", ".join(keys)
        self.carried |= dict.fromkeys(given, row.option)
        if row.note and (given or row.note_on_default):
            self.notes[keys[0]] = row.note

    def add_rest(self, key: str, value: Any, tool: Tool) -> None:
        """What becomes of a key that no row has."""
        known = {**self.carried, **self.not_carried, **self.not_needed}
        if key in known:
            return
        name = key.rpartition("].")[2]
        on_by_default = name in tool.on_by_default
        if value in (None, "", [], {}) or value is False and not on_by_default:
            self.not_needed[key] = "it is empty or off"
        elif name in tool.not_needed and value is not False:
            self.not_needed[key] = tool.not_needed[name]
        elif on_by_default and value is True:
            self.not_needed[key] = f"{tool.name} does so anyway"
        else:
            self.not_carried[key] = tool.no_option.get(name, "edgeft has no such option")

    def _lose(self, keys: list[str], why: str) -> None:
        self.not_carried |= dict.fromkeys(keys, why)


def _tool(file: Path, config: Mapping[str, Any]) -> Tool:
    for key, tool in TOOLS.items():
        if key in config:
            return tool
    for key, what in OTHERS.items():
        if key in config:
            raise InputError(f"{file} holds {what}", "edgeft convert-config reads trainings")
    raise InputError(
        f"{file} is no training configuration of LLaMA-Factory or Axolotl",
        f"the first has the key {' and the second '.join(TOOLS)}",
    )


def _flat(config: Mapping[str, Any], tool: Tool) -> Iterator[tuple[str, Any]]:
    """Every key of the file, and those inside its lists of datasets as datasets[0].key."""
    for key, value in config.items():
        if key in tool.dataset_lists and isinstance(value, list):
            yield key, value
            for number, entry in enumerate(value):
                inner = entry if isinstance(entry, dict) else {}
                yield from (
                    (f"{key}[{number}].{name}", part)
                    for name, part in inner.items()
                    if name not in tool.dataset_keys
                )
        else:
            yield str(key), value


def _toml(file: Path, tool: Tool, outcome: _Outcome) -> str:
    """The TOML: a table of the command, and comments on all that is not in it."""
    lines = [
        f"# {tool.name}'s {file.name}, converted by edgeft convert-config.",
        f"# edgeft {outcome.command} --config THIS-FILE; an option typed there goes before this file.",
        "",
        f"[{outcome.command}]",
    ]
    for option, value in outcome.options.items():
        lines.append(f"{option} = {toml_value(value)}  # {_comment(outcome.comments[option])}")
    missing = [name for name in ("base", "data", "output") if name not in outcome.options]
    if missing:
        lines += ["", f"# To be typed, or written here: {', '.join(missing)}."]
    for title, found in (
        ("Not carried over:", outcome.not_carried),
        ("Carried over, with another meaning:", outcome.notes),
        ("Needs no option:", outcome.not_needed),
    ):
        if found:
            lines += ["", f"# {title}"]
            lines += [f"#   {_comment(key)}: {_comment(reason)}" for key, reason in found.items()]
    return "\n".join(lines) + "\n"


def toml_value(value: Any) -> str:
    """A string, number, bool or list of them as TOML writes it."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, str):  # TOML's basic strings are JSON's, but for the delete character
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)


def _comment(text: str) -> str:
    """One printable line."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
