"""run.toml with a table [sweep] -> the training's values, typed by `edgeft train`, and the space.

    @click.argument("file", is_eager=True, callback=read_sweep_table)
    ...
    run, space = read_run(ctx, file)

In [sweep], a list or a table {low, high, log} belongs to an option of `edgeft train`, and anything else is
an option of `edgeft sweep`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from edgeft.cli._config import as_option, options_by_name
from edgeft.cli.train import command as train_command
from edgeft.errors import InputError, did_you_mean
from edgeft.files import read_toml
from edgeft.sweep.options import Range

TABLE = "sweep"
RANGE_KEYS = ("low", "high", "log")
FIXED = (
    "output", "preview", "show-config", "resume", "overwrite", "json", "list", "report-to", "eval-items",
    "max-memory",
    "max-disk",
    "eval-scorer", "eval-limit", "eval-every",
)  # fmt: skip
"""options of `edgeft train` that are the same for all trials"""


def read_sweep_table(ctx: click.Context, param: click.Parameter, path: Path) -> Path:
    """Callback: the defaults of `edgeft sweep` from [sweep]; what is swept stays in `ctx.meta`."""
    path = path.resolve()
    table = read_toml(path).get(TABLE, {})
    if not isinstance(table, dict):
        raise InputError(f"{path}: {TABLE} is {table!r}", "a table [sweep]")
    options, train = options_by_name(ctx.command), options_by_name(train_command)
    defaults, swept = {}, {}
    for key, value in table.items():
        name = "--" + key.replace("_", "-")
        if isinstance(value, list | dict) and (name in train or name not in options):
            swept[key] = value
        elif name in train and name not in options:
            raise InputError(
                f"{path}: [sweep] {key} is one value", f"{key} = [{value!r}], or above [sweep]"
            )
        elif name not in options:
            raise InputError(f"{path}: [sweep]: unknown key {key!r}", _near(key, ctx))
        else:
            option, typed = as_option(path, str(ctx.info_name), options, key, value)
            defaults[option] = typed
    ctx.default_map = {**(ctx.default_map or {}), **defaults}
    ctx.meta[TABLE] = swept
    return path


def read_run(ctx: click.Context, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(parameters of `edgeft train` from the file, the space); InputError for what train refuses."""
    train = train_command
    swept: dict[str, Any] = ctx.meta[TABLE]
    if not swept:
        raise InputError(f"{path} sweeps nothing", "[sweep] with learning-rate = [1e-4, 5e-4]")
    options = options_by_name(train)
    words = ["--config", str(path), "--output", "none"]  # each trial has an output of its own
    for key, value in swept.items():
        option = options.get("--" + key.replace("_", "-"))
        if option is None:
            raise InputError(f"{path}: [sweep]: unknown key {key!r}", _near(key, ctx))
        if option.required and isinstance(value, list) and value:
            words += [option.opts[0], str(value[0])]
    try:
        context = train.make_context("train", words, parent=ctx.parent)
        space = dict(_values(context, path, options, key, swept[key]) for key in swept)
    except click.UsageError as error:
        raise InputError(f"{path}: {error.format_message()}") from None
    return dict(context.params), space


def _values(
    train: click.Context, path: Path, options: dict[str, click.Option], key: str, value: Any
) -> tuple[str, tuple[Any, ...] | Range]:
    """(field, its values, typed and checked by the option)."""
    option = options["--" + key.replace("_", "-")]
    if option.opts[0].removeprefix("--") in FIXED:
        raise InputError(
            f"{path}: [sweep] {key} is the same for all trials", f"{key} above [sweep]"
        )

    def typed(item: Any) -> Any:
        _, text = as_option(path, "train", options, key, item)
        return option.process_value(train, text)

    if isinstance(value, dict):
        return str(option.name), _range(path, key, option, value, typed)
    values = [typed(item) for item in value]
    if not values:
        raise InputError(f"{path}: [sweep] {key} is an empty list", f"{key} = [VALUE, VALUE]")
    if len({str(item) for item in values}) < len(values):
        raise InputError(f"{path}: [sweep] {key} names a value twice", "name each once")
    return str(option.name), tuple(values)


def _range(path: Path, key: str, option: click.Option, value: dict[str, Any], typed: Any) -> Range:
    where = f"{path}: [sweep] {key}"
    hint = f"{key} = {{low = 1e-5, high = 1e-3, log = true}}"
    if unknown := [name for name in value if name not in RANGE_KEYS]:
        raise InputError(
            f"{where}: unknown key {unknown[0]!r}", did_you_mean(unknown[0], RANGE_KEYS)
        )
    if not isinstance(option.type, click.types.FloatParamType | click.types.IntParamType):
        raise InputError(
            f"{where} is no number, so that it has no range", f"{key} = [VALUE, VALUE]"
        )
    if not isinstance(value.get("log", False), bool) or not {"low", "high"} <= value.keys():
        raise InputError(f"{where} has no low and high, or log is neither true nor false", hint)
    low, high, log = typed(value["low"]), typed(value["high"]), value.get("log", False)
    if not (isinstance(low, int | float) and isinstance(high, int | float) and low < high):
        raise InputError(f"{where}: low {low} is not below high {high}", hint)
    if log and low <= 0 or not math.isfinite(high - low):
        raise InputError(f"{where}: a logarithmic range begins above 0", hint)
    return Range(low, high, log, isinstance(option.type, click.types.IntParamType))


def _near(key: str, ctx: click.Context) -> str:
    names = (*options_by_name(train_command), *options_by_name(ctx.command))
    known = {name.removeprefix("--") for name in names}
    return did_you_mean(key.replace("_", "-"), known - set(FIXED))
