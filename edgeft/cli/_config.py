"""`--config run.toml` -> defaults for a command's options."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from edgeft.cli._old_names import current_name, current_value
from edgeft.errors import InputError, did_you_mean
from edgeft.files import expand_user, read_toml

F = TypeVar("F", bound=Callable[..., Any])


PATHS = ("adapter",)
"""parameters of another type than click.Path that are paths"""
PATHS_OR_NAMES = ("base", "imatrix", "calibration", "items")
"""parameters that are a path, or a name such as an embedded base's or `auto`"""


def configurable(function: F) -> F:
    """Add `--config run.toml`: defaults for this command, from its table or the top level.

    Keys are option names, with - or _. An unknown key is an InputError. Relative paths are relative to
    the file, so that it works from any folder.
    """
    return click.option(
        "--config",
        type=click.Path(dir_okay=False, path_type=Path),
        is_eager=True,
        expose_value=False,
        callback=_set_defaults,
        help="TOML file with defaults for these options; its paths are relative to it.",
    )(function)


def _set_defaults(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    command = ctx.info_name or ""
    options = options_by_name(ctx.command)
    defaults = dict(
        as_option(path, command, options, key, value)
        for key, value in _read_table(ctx, path).items()
    )
    ctx.default_map = {**(ctx.default_map or {}), **defaults}


def options_by_name(command: click.Command) -> dict[str, click.Option]:
    """Every name of a command's options, with -- -> the option; without --config and --progress."""
    return {
        name: option
        for option in command.params
        if isinstance(option, click.Option) and option.name not in ("config", "progress")
        for name in (*option.opts, *option.secondary_opts)
    }


def as_option(
    path: Path, command: str, options: dict[str, click.Option], key: str, value: Any
) -> tuple[str, Any]:
    """(parameter, value as the command line has it) of one key of a file; InputError for a fault."""
    _check_usable(path, key, value)
    name = current_name(command, "--" + key.replace("_", "-"))
    option = options.get(name)
    if option is None:
        known = [option.removeprefix("--") for option in options]
        raise InputError(f"{path}: unknown key {key!r}", did_you_mean(key, known))
    value = _as_typed(path, key, option, current_value(command, name, value))
    return str(option.name), not value if name in option.secondary_opts else value


def _read_table(ctx: click.Context, path: Path) -> dict[str, Any]:
    """The command's table, or the keys above all tables where the file has no such table."""
    content = read_toml(path)
    root = ctx.find_root()
    commands = root.command.list_commands(root) if isinstance(root.command, click.Group) else []
    for name in (name for name, value in content.items() if isinstance(value, dict)):
        if name not in commands:
            raise InputError(f"{path}: no command [{name}]", did_you_mean(name, commands))
    table: Any = content
    for name in _names(ctx):
        table = table.get(name) if isinstance(table, dict) else None
    if isinstance(table, dict):
        return table
    return {key: value for key, value in content.items() if not isinstance(value, dict)}


def _names(ctx: click.Context) -> list[str]:
    """The words of a command: ["ab"], or ["data", "check"] for the table [data.check]."""
    if ctx.parent is None or ctx.parent.parent is None:
        return [ctx.info_name or ""]
    return [*_names(ctx.parent), ctx.info_name or ""]


def _check_usable(path: Path, key: str, value: Any) -> None:
    """InputError for what no option takes and Python cannot even show: TOML's 0x… has no limit."""
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, int) and item.bit_length() > 64:
            raise InputError(f"{path}: {key} is a number of {item.bit_length()} bits")
        if isinstance(item, str) and "\0" in item:
            raise InputError(f"{path}: {key} has a zero byte")


def _as_typed(path: Path, key: str, option: click.Option, value: Any) -> Any:
    """A value in the form in which the command line has it: click then checks both alike."""
    if option.is_flag:
        if not isinstance(value, bool):
            raise InputError(f"{path}: {key} is {value!r}", "true or false")
        return value
    values = value if isinstance(value, list) and option.multiple else [value]
    if not all(isinstance(item, (str, int, float)) and not isinstance(item, bool)
               for item in values):  # fmt: skip
        listed = " or a list of them" if option.multiple else ""
        raise InputError(f"{path}: {key} is {value!r}", f"a string or a number{listed}")
    texts = [_beside(path, option, str(item)) for item in values]
    return texts if option.multiple else texts[0]


def _beside(path: Path, option: click.Option, text: str) -> str:
    """A path that the file has relative to itself, relative to the current folder; other values as they are.

    What takes a path or a name, such as --base, is a path where that exists.
    """
    if text in ("", "-", "auto"):
        return text
    is_path = isinstance(option.type, click.Path) or option.name in PATHS
    if is_path or option.name in PATHS_OR_NAMES and _exists(path.parent / text):
        return str(path.parent / expand_user(text))
    return text


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long for a path, so a name
        return False


def option_checks(command: click.Command) -> dict[str, Callable[[Any], str]]:
    """Option without -- -> its check: a value of a `--config` file -> why it is refused, "" where it is not."""
    context = click.Context(command, info_name=command.name)

    def check(option: click.Option, value: Any) -> str:
        try:
            option.process_value(context, _as_typed(Path(), option.opts[0], option, value))
        except (click.UsageError, InputError) as error:
            return f"{option.opts[0]} of edgeft {command.name}: {error.message}"
        return ""

    return {
        option.opts[0].removeprefix("--"): functools.partial(check, option)
        for option in command.params
        if isinstance(option, click.Option)
    }
