"""What the commands' options share: --config, --json, lists, and the command as it was typed."""

from __future__ import annotations

import json
import math
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from edgeft.errors import InputError, did_you_mean

F = TypeVar("F", bound=Callable[..., Any])


def configurable(function: F) -> F:
    """Add `--config run.toml`: defaults for this command, from its table or the top level.

    Keys are option names, with - or _; an unknown key is refused.
    """
    return click.option(
        "--config",
        type=click.Path(dir_okay=False, path_type=Path),
        is_eager=True,
        expose_value=False,
        callback=_read_config,
        help="TOML file with defaults for these options.",
    )(function)


def asking(function: F) -> F:
    """Add the options of `edgeft.benchmarks.quality.evaluate.EvalOptions`, apart from --items."""
    for option in reversed(
        (
            click.option(
                "--scorer",
                help="exact, json, numeric, regex, contains, choice, chrf, rouge-l, or a Python file "
                "with score(reply, wanted).  [default: the suite's, else exact]",
            ),
            click.option(
                "--examples",
                type=click.Path(path_type=Path),
                help="Data that few-shot prompts are drawn from.  [default: the suite's]",
            ),
            click.option(
                "--limit", type=click.IntRange(min=1), help="Only the first so many items."
            ),
            click.option("--max-tokens", type=click.IntRange(min=1), help="Of an answer."),
            click.option("--threads", type=click.IntRange(1, 512), help="[default: all cores]"),
            click.option("--fresh", is_flag=True, help="Answer again where a score is kept."),
        )
    ):
        function = option(function)
    return function


def json_option(function: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")(
        function
    )


def needs(ctx: click.Context, **wanted: str) -> None:
    """UsageError for an option that was given without the one that gives it a meaning: `shots="base"`."""
    typed = {str(param.name): param.opts[0] for param in ctx.command.params}
    for name, other in wanted.items():
        given = ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if given and not ctx.params.get(other):
            raise click.UsageError(f"{typed[name]} needs {typed[other]}")


def as_typed_command(argv: list[str]) -> str:
    return shlex.join(["edgeft", *argv[1:]])


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, default=str))


def finite(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    """Callback of a number: no range of click's keeps NaN out."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a number to count with")
    return value


def comma_list(
    ctx: click.Context, param: click.Parameter, value: tuple[str, ...]
) -> tuple[str, ...]:
    """Callback of a repeatable option whose values may also be joined by commas."""
    return tuple(part.strip() for item in value for part in item.split(",") if part.strip())


def _as_typed(path: Path, key: str, option: click.Option, value: Any) -> Any:
    """A value as the command line would have it, which click then reads as it reads that."""
    if option.is_flag:
        if not isinstance(value, bool):
            raise InputError(f"{path}: {key} is {value!r}", "true or false")
        return value
    values = value if isinstance(value, list) and option.multiple else [value]
    if not all(isinstance(item, (str, int, float)) and not isinstance(item, bool)
               for item in values):  # fmt: skip
        listed = " or a list of them" if option.multiple else ""
        raise InputError(f"{path}: {key} is {value!r}", f"a string or a number{listed}")
    texts = [str(item) for item in values]
    return texts if option.multiple else texts[0]


def _read_config(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"no such file: {path}", "check --config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}", "lines such as quant = 'q8_0'") from None
    commands = ctx.parent.command.list_commands(ctx) if ctx.parent else []  # type: ignore[attr-defined]
    for name in (name for name, value in raw.items() if isinstance(value, dict)):
        if name not in commands:
            raise InputError(f"{path}: no command [{name}]", did_you_mean(name, commands))
    table = raw.get(ctx.info_name or "")
    if not isinstance(table, dict):
        table = {key: value for key, value in raw.items() if not isinstance(value, dict)}
    known = {
        name.lstrip("-"): param
        for param in ctx.command.params
        if isinstance(param, click.Option) and param.name != "config"
        for name in param.opts
    }
    defaults = {}
    for key, value in table.items():
        option = known.get(key.replace("_", "-"))
        if option is None:
            raise InputError(f"{path}: unknown key {key!r}", did_you_mean(key, known))
        defaults[str(option.name)] = _as_typed(path, key, option, value)
    ctx.default_map = {**(ctx.default_map or {}), **defaults}
