"""Options of the commands that ask artifacts the items of a suite or a file: ab, bench, search."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from edgeft.benchmarks.options import EvalOptions
from edgeft.cli._options import options_of

F = TypeVar("F", bound=Callable[..., Any])


def items_options(required: bool = False) -> Callable[[F], F]:
    """Add the options of `EvalOptions`: which items are asked, and how."""
    return options_of(
        EvalOptions,
        items={"required": required},
        examples={"name": "--few-shot-data"},
        limit=click.IntRange(min=1),
        max_tokens=click.IntRange(min=1),
        threads=click.IntRange(1, 512),
        fresh={"name": "--no-cache"},
    )


def report_option(function: F) -> F:
    return click.option(
        "--report",
        "folder",
        type=click.Path(path_type=Path, file_okay=False),
        help="Folder for report.html, report.json and report.md.",
    )(function)


def as_typed_command(argv: list[str]) -> str:
    return shlex.join(["edgeft", *argv[1:]])
