"""Options of the commands that ask artifacts the items of a suite or a file: ab, bench, search."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgeft.benchmarks.options import EvalOptions
from edgeft.cli._options import options_of

if TYPE_CHECKING:
    from edgeft.train.answers import AnswerItems

F = TypeVar("F", bound=Callable[..., Any])


def items_options(required: bool = False) -> Callable[[F], F]:
    """Add the options of `EvalOptions`: which items are asked, and how."""
    return options_of(
        EvalOptions,
        items={"required": required},
        limit=click.IntRange(min=1),
        max_tokens=click.IntRange(min=1),
        threads=click.IntRange(1, 512),
    )


def eval_items_options(function: F) -> F:
    """Add --eval-items, --eval-scorer and --eval-limit: what a training run answers on its way."""
    return options_of(
        EvalOptions,
        only=("items", "scorer", "limit"),
        items={"name": "--eval-items", "help": "Items to answer greedily whenever the validation loss is "
               "computed, for their accuracy: an embedded suite (smart_home) or a data file."},
        scorer={"name": "--eval-scorer"},
        limit={"name": "--eval-limit", "type": click.IntRange(min=1)},
    )(function)  # fmt: skip


def pop_eval_options(options: dict[str, Any]) -> EvalOptions | None:
    """Takes the values of `eval_items_options` out of `options`; None where no items are named."""
    names = ("items", "scorer", "limit")
    chosen = EvalOptions(
        **{name: options.pop(name) for name in names}, bad_rows=options["bad_rows"]
    )
    if chosen.items is None:
        if chosen.scorer or chosen.limit:
            raise click.UsageError("--eval-scorer and --eval-limit need --eval-items")
        return None
    return chosen


def answer_items(options: dict[str, Any]) -> AnswerItems | None:
    """The items that a training run answers; takes the values of `eval_items_options` out of `options`."""
    chosen = pop_eval_options(options)
    if chosen is None:
        return None
    from edgeft.benchmarks.quality.training_items import training_items

    return training_items(chosen)


def report_option(function: F) -> F:
    return click.option(
        "--report",
        "folder",
        type=click.Path(path_type=Path, file_okay=False),
        help="Folder for report.html, report.json and report.md.",
    )(function)


def as_typed_command(argv: list[str]) -> str:
    return shlex.join(["edgeft", *argv[1:]])
