"""Options dataclass -> click options, and the options and checks that several commands share.

    @options_of(ServeOptions, skip=("artifacts", "key"), port=click.IntRange(0, 65535))

So a default, a type and a help text are written once: in the dataclass.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import json
import math
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin

import click
from click.core import ParameterSource

from edgeft import machine
from edgeft.errors import InputError

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


class Bytes(click.ParamType[int]):
    """200M, 1.5G, 800 kB or a number of bytes above 0; powers of 1000 as everywhere in edgeft."""

    name = "size"
    units = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}  # noqa: RUF012

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"\s*(\d+\.?\d*)\s*([kmgt]?)b?\s*", str(value).lower())
        size = round(float(match[1]) * self.units[match[2]]) if match else 0
        if size <= 0:
            self.fail(f"{value!r} is no size; such as 200M or 1.5G", param, ctx)
        return size


def options_of(
    cls: type[Any], *, only: Collection[str] = (), skip: Collection[str] = (), **changes: Any
) -> Callable[[F], F]:
    """Add one option for each field of the dataclass `cls`, in the order of the fields.

    The name is `--` and the field's name; a flag that is on by default also has `--no-`. Type and
    default are the field's; the help is the string after the field. `changes` says what click needs
    beyond that: FIELD=click type, or FIELD=dict of arguments of `click.option` and `name`.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if unknown := {*only, *skip, *changes} - set(fields):
        raise TypeError(f"{cls.__name__} has no field {', '.join(sorted(unknown))}")

    def decorate(function: F) -> F:
        for name in reversed([name for name in only or fields if name not in skip]):
            function = _option(cls, fields[name], changes.get(name, {}))(function)
        return function

    return decorate


def build(cls: type[T], options: dict[str, Any], **more: Any) -> T:
    """An instance of the dataclass `cls`. The values of its fields are removed from `options`."""
    names = [field.name for field in dataclasses.fields(cls) if field.name in options]  # type: ignore[arg-type]
    return cls(**{name: options.pop(name) for name in names}, **more)


def _option(cls: type[Any], field: dataclasses.Field[Any], change: Any) -> Callable[[F], F]:
    change = change if isinstance(change, dict) else {"type": change}
    settings = {"help": field_helps(cls).get(field.name), **_default(field)}
    settings |= {} if "type" in change else _type(_hint(cls, field))
    settings |= change
    if isinstance(settings.get("type"), (click.FloatRange, type(click.FLOAT))):
        settings.setdefault("callback", finite)
    name = settings.pop("name", "--" + field.name.replace("_", "-"))
    if settings.get("is_flag") and field.default and "/" not in name:
        name = f"{name}/--no-{name[2:]}"
    return click.option(name, field.name, **settings)


def _default(field: dataclasses.Field[Any]) -> dict[str, Any]:
    if field.default is dataclasses.MISSING:
        return {"required": True}
    shown = field.default is not False and field.default not in (None, "", ())
    return {"default": field.default, "show_default": shown}


def _hint(cls: type[Any], field: dataclasses.Field[Any]) -> Any:
    """The type of a field, without `| None`."""
    hint = field.type
    if isinstance(hint, str):
        # Not get_type_hints: the type of another field may be imported for type checkers only.
        hint = eval(hint, vars(sys.modules[cls.__module__]))
    if isinstance(hint, UnionType):
        (hint,) = (member for member in get_args(hint) if member is not NoneType)
    return hint


def _type(hint: Any) -> dict[str, Any]:
    """Type of a field -> what `click.option` calls it."""
    if hint is bool:
        return {"is_flag": True}
    if get_origin(hint) is tuple:
        return {"multiple": True, "callback": comma_list}
    if get_origin(hint) is Literal:
        return {"type": click.Choice(get_args(hint))}
    if hint is Path:
        return {"type": click.Path(path_type=Path)}
    return {"type": click.FLOAT if hint is float else hint}


def field_helps(cls: type[Any]) -> dict[str, str]:
    """Field -> the string after it, from the source of the dataclass."""
    return _module_helps(cls.__module__).get(cls.__name__, {})


@functools.cache
def _module_helps(module: str) -> dict[str, dict[str, str]]:
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except OSError:  # installed without sources: options without a help
        return {}
    return {node.name: dict(_helps(node)) for node in tree.body if isinstance(node, ast.ClassDef)}


def _helps(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for pair in zip(node.body, node.body[1:], strict=False):
        match pair:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                yield name, " ".join(text.split())


def json_option(function: F) -> F:
    """Eager: known to the callbacks of other options."""
    return click.option(
        "--json", "as_json", is_flag=True, is_eager=True, help="One JSON object on stdout."
    )(function)


def budget_options(function: F) -> F:
    """Add --max-memory and --max-disk; the command runs within them."""

    @functools.wraps(function)
    def command(*args: Any, **options: Any) -> Any:
        with machine.limited(build(machine.Budget, options)):
            return function(*args, **options)

    limits = options_of(machine.Budget, max_memory=Bytes(), max_disk=Bytes())
    return limits(command)  # type: ignore[return-value]


def require_options(ctx: click.Context, **needed: str) -> None:
    """UsageError for an option that was typed without the one that it depends on: `shots="base"`."""
    names = {str(param.name): param.opts[0] for param in ctx.command.params}
    for name, other in needed.items():
        if is_typed(ctx, name) and not ctx.params.get(other):
            raise click.UsageError(f"{names[name]} needs {names[other]}")


def is_typed(ctx: click.Context, name: str) -> bool:
    """Whether an option stood on the command line."""
    return ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE


def print_json(value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False, default=str)
    # Half a surrogate pair is shown as \\ud800.
    click.echo(text.encode("utf-8", "backslashreplace").decode())


def columns(table: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells -> one line each, the cells of a column below each other."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]


def finite(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    """Callback of a number: click's ranges let NaN through."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number")
    return value


COMMA = re.compile(r",(?![^(]*\)|[^\[]*\])")


def comma_list(
    ctx: click.Context, param: click.Parameter, value: tuple[str, ...]
) -> tuple[str, ...]:
    """Callback of a repeatable option whose values may also be joined by commas, outside of (…) and […].

    InputError where it is given and names nothing.
    """
    parts = (part.strip() for item in value for part in COMMA.split(item))
    names = tuple(part for part in parts if part)
    if value and not names:
        raise InputError(
            f"{param.opts[0]} {value[0]!r} names nothing", "leave it out for the default"
        )
    return names


class CountOrAuto(click.IntRange):
    """A whole number from 1, or the word auto."""

    name = "integer range or auto"

    def __init__(self) -> None:
        super().__init__(min=1)

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        return value if value == "auto" else super().convert(value, param, ctx)
