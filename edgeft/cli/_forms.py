"""click commands -> the forms of the studio, and a check of what a form holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from edgeft.cli import COMMANDS, group
from edgeft.errors import EdgeftError
from edgeft.studio.forms import CommandForm, Commands, Field

NOT_IN_A_FORM = ("as_json", "progress", "config", "help")
"""parameters that the studio decides"""


def commands() -> Commands:
    """The commands of the command line, for the studio."""
    return Commands(form_of, problem_of)


def form_of(name: str) -> CommandForm:
    """The form of a command such as "data check"; KeyError where there is none."""
    command = _command(name.split())
    names = {param.name for param in command.params}
    return CommandForm(
        words=tuple(name.split()),
        help=(command.help or "").partition("\n\n")[0].replace("\n", " ").strip(),
        fields=tuple(_field(param) for param in command.params if _is_field(param)),
        has_json="as_json" in names,
        has_config="config" in names,
    )


def problem_of(words: Sequence[str]) -> str:
    """Why the command line refuses the words after `edgeft`; "" where it takes them. Runs no command."""
    try:
        command, length = _command(words), 2 if words[0] == "data" else 1
        command.make_context(words[length - 1], list(words[length:]))
    except click.ClickException as error:
        return error.format_message()
    except (EdgeftError, OSError) as error:
        return str(error)
    except click.exceptions.Exit:
        return "this option prints and runs nothing"
    return ""


def _command(words: Sequence[str]) -> click.Command:
    context = click.Context(group)
    command = group.get_command(context, words[0]) if words and words[0] in COMMANDS else None
    if isinstance(command, click.Group):
        command = command.commands.get(words[1]) if len(words) > 1 else None
    if command is None:
        raise KeyError(" ".join(words[:2]))
    return command


def _is_field(param: click.Parameter) -> bool:
    if isinstance(param, click.Option) and (param.hidden or not param.expose_value):
        return False
    return param.name not in NOT_IN_A_FORM


def _field(param: click.Parameter) -> Field:
    option = param if isinstance(param, click.Option) else None
    many = param.nargs == -1 or param.multiple
    facts: dict[str, Any] = {
        "name": str(param.name),
        "flag": max(option.opts, key=len) if option else "",
        "off_flag": max(option.secondary_opts, key=len, default="") if option else "",
        "kind": _kind(param),
        "many": many,
        "required": param.required,
        "help": " ".join((option.help or "").split()) if option else "",
    }
    default = param.default if option and not callable(param.default) else None
    if facts["kind"] == "switch":
        facts["default"] = bool(default) if isinstance(default, bool) else False
    elif isinstance(default, (list, tuple)) and many:
        facts["default"] = tuple(map(str, default))
    elif isinstance(default, (str, int, float)) and not isinstance(default, bool):
        facts["default"] = f"{default:g}" if isinstance(default, float) else str(default)
    if option and isinstance(option.show_default, str):
        facts["default_text"] = option.show_default
    kind = param.type
    if isinstance(kind, click.Choice):
        facts["choices"] = tuple(str(choice) for choice in kind.choices)
    if isinstance(kind, (click.IntRange, click.FloatRange)):
        facts["minimum"], facts["maximum"] = kind.min, kind.max
    return Field(**facts)


def _kind(param: click.Parameter) -> str:
    if isinstance(param, click.Option) and param.is_flag:
        return "switch"
    if isinstance(param.type, click.Choice):
        return "choice"
    if type(param.type) in (click.IntRange, type(click.INT)):
        return "integer"
    if type(param.type) in (click.FloatRange, type(click.FLOAT)):
        return "number"
    return "text"
