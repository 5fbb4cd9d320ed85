"""Options that have a new name: the old one is accepted in this version, with a note on stderr."""

from __future__ import annotations

import itertools
from typing import Any

import click

from edgeft.progress import say

ITEMS = {"--examples": "--few-shot-data", "--fresh": "--no-cache"}
BATCH_INVARIANT = {
    "--isolate": "--batch-invariant",
    "--no-isolate": "--no-batch-invariant",
}

OLD_NAMES: dict[str, dict[str, str]] = {
    "train-qlora": {"--warmup": "--warmup-ratio"},
    "merge-export": {
        "--merge-base": "--base-precision",
        "--base-precision w16": "--base-precision stored",
        "--validation": "--validation-data",
        "--damp": "--dampening-frac",
        "--offload": "--offload-activations",
        "--live": "--compare-live",
        "--no-live": "--no-compare-live",
    },
    "search": ITEMS,
    "score": {"--adapter": "--model"},
    "chat": {"--exact": "--reference", **BATCH_INVARIANT},
    "serve": {"--grace": "--shutdown-timeout", **BATCH_INVARIANT},
    "bench": {
        **ITEMS,
        "--grid": "--sweep",
        "--keep": "--save-baseline",
        "--smallest-memory": "--find-memory-limit",
        "--through": "--via",
    },
    "ab": {
        **ITEMS,
        "--floor": "--repeat-baseline",
        "--no-floor": "--no-repeat-baseline",
        "--keeps": "--min-retention",
    },
}
"""command -> old option, or option and old value -> what replaces it"""


def current_name(command: str, option: str) -> str:
    """The name that replaces an option's old one, noted on stderr; else `option` itself."""
    return _current(command, option)


def current_value(command: str, option: str, value: Any) -> Any:
    """The value that replaces an option's old one, noted on stderr; else `value` itself."""
    typed = f"{option} {value}"
    new = _current(command, typed)
    return value if new == typed else new.removeprefix(f"{option} ")


def current_args(command: click.Command, args: list[str]) -> list[str]:
    """Arguments of a command with old names and values replaced."""
    name = str(command.name)
    if name not in OLD_NAMES:
        return args
    takes_value = {
        option
        for param in command.params
        if isinstance(param, click.Option) and not param.is_flag
        for option in param.opts
    }
    replaced: list[str] = []
    rest = iter(args)
    for arg in rest:
        if arg == "--":  # only arguments follow
            return [*replaced, arg, *rest]
        option, equals, value = arg.partition("=")
        option = current_name(name, option)
        if equals:
            replaced.append(f"{option}={current_value(name, option, value)}")
            continue
        replaced.append(option)
        if option in takes_value:  # the next word is a value, whatever it looks like
            replaced += [current_value(name, option, word) for word in itertools.islice(rest, 1)]
    return replaced


def _current(command: str, typed: str) -> str:
    new = OLD_NAMES.get(command, {}).get(typed)
    if new is None:
        return typed
    say(f"{typed} is now called {new}; the old name goes away in the next version")
    return new
