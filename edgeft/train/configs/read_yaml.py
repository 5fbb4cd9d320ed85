"""A YAML file -> a dict of its top-level keys; InputError for everything that is no such file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeft.errors import InputError, require

MAX_YAML_BYTES = 100_000
MAX_YAML_LEVELS = 64
"""of lists and mappings within each other: PyYAML's time grows with their square"""


def read_yaml(file: Path) -> dict[str, Any]:
    """The keys of the file as PyYAML's safe loader reads them.

    A key that stands twice is an InputError: PyYAML would drop the first. So is an alias (`*name`): a
    few lines of them unfold to more than any memory. MissingExtra without PyYAML.
    """
    yaml = require("yaml", "train")
    hint = "a configuration of LLaMA-Factory or Axolotl"
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_YAML_BYTES + 1)
    except FileNotFoundError:
        raise InputError(f"no such file: {file}", hint) from None
    except IsADirectoryError:
        raise InputError(f"{file} is a folder", hint) from None
    if len(content) > MAX_YAML_BYTES:
        raise InputError(f"{file} is larger than {MAX_YAML_BYTES} bytes", hint)
    try:
        level = 0
        for event in yaml.parse(content):
            level += isinstance(event, yaml.CollectionStartEvent)
            level -= isinstance(event, yaml.CollectionEndEvent)
            if level > MAX_YAML_LEVELS:
                raise ValueError(f"more than {MAX_YAML_LEVELS} levels")
            if isinstance(event, yaml.AliasEvent):
                raise InputError(f"{file} has an alias (*name)", "write the value itself")
        root = yaml.compose(content, Loader=yaml.SafeLoader)
        value = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        problem = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{file} is not YAML: {problem}", hint) from None
    if not isinstance(value, dict) or not value:
        raise InputError(f"{file} holds no keys", hint)
    names = [node.value for node, _ in root.value]
    twice = sorted({str(name) for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{file}: {', '.join(twice)} stands twice", "keep the one that is meant")
    return {str(key): part for key, part in value.items()}
