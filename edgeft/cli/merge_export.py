"""`edgeft merge-export`: adapter (+ base) -> artifacts, each checked against the original model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeft.cli._config import configurable
from edgeft.cli._options import (
    Bytes,
    budget_options,
    build,
    json_option,
    options_of,
    print_json,
)
from edgeft.errors import InputError
from edgeft.export.options import ExportOptions

if TYPE_CHECKING:
    from edgeft.adapter.read import Weighted


def _weighted(
    ctx: click.Context, param: click.Parameter, value: tuple[str, ...]
) -> tuple[Weighted, ...]:
    """PATH or PATH:WEIGHT; a colon without a number after it belongs to the path."""
    from edgeft.adapter.read import Weighted

    adapters = []
    for text in value:
        path, _, number = text.rpartition(":")
        try:
            weight = float(number) if path and not Path(text).exists() else None
        except ValueError:
            weight = None
        if weight is not None and not (math.isfinite(weight) and weight):
            raise InputError(f"no weight for an adapter: {text}", "such as --adapter PATH:0.5")
        adapters.append(Weighted(Path(text)) if weight is None else Weighted(Path(path), weight))
    return tuple(adapters)


def _tensor_types(
    ctx: click.Context, param: click.Parameter, value: tuple[str, ...]
) -> tuple[tuple[str, str], ...]:
    """REGEX=TYPE; the regular expression may hold more equals signs."""
    types = []
    for text in value:
        pattern, equals, type_name = text.rpartition("=")
        if not (equals and pattern and type_name):
            raise click.BadParameter(f"{text!r} is not REGEX=TYPE")
        types.append((pattern, type_name.lower()))
    return tuple(types)


def _group_size(ctx: click.Context, param: click.Parameter, value: str) -> int | None:
    return None if value == "auto" else int(value)


def _calibration(ctx: click.Context, param: click.Parameter, value: str) -> Path | None:
    return None if value == "auto" else Path(value)


@click.command("merge-export")
@options_of(
    ExportOptions,
    adapter={"metavar": "PATH[:WEIGHT]", "type": str, "multiple": True, "callback": _weighted},
    formats={"name": "--format"},
    quants={"name": "--quant"},
    imatrix={"metavar": "auto|FILE"},
    calibration={
        "metavar": "auto|FILE",
        "type": str,
        "default": "auto",
        "show_default": True,
        "callback": _calibration,
    },
    calibration_text={"metavar": "FILE"},
    calibration_tokens=click.IntRange(min=1),
    group_size={
        "type": click.Choice(["auto", "32", "64", "128", "-1"]),
        "default": "auto",
        "show_default": True,
        "callback": _group_size,
    },
    symmetric={"name": "--symmetric/--asymmetric"},
    dampening_frac={
        "type": click.FloatRange(0, 1, min_open=True, max_open=True),
    },
    tensor_types={
        "name": "--tensor-type",
        "metavar": "REGEX=TYPE",
        "callback": _tensor_types,
    },
    max_size=Bytes(),
    compare_live={"name": "--compare-live/--no-compare-live"},
    threads={"type": click.IntRange(min=1), "show_default": "all cores"},
)
@budget_options
@json_option
@configurable
def command(as_json: bool, **options: Any) -> None:
    """Merge in float32 and write each artifact in one pass, then check it against the original model.

    \b
    edgeft merge-export --adapter adapter --out out --format gguf --quant q4_k_m,q8_0,f16
    edgeft merge-export --adapter adapter --out out --quant gptq-q4_0
    edgeft merge-export --adapter adapter --out out --format gptq --quant 4bit --group-size 128
    edgeft merge-export --adapter adapter --out out --format onnx --quant int4
    """
    from edgeft.export.pipeline import export

    artifacts = export(build(ExportOptions, options))
    if as_json:
        print_json({"artifacts": [
            {"path": str(a.path), "format": a.format, "quant": a.quant, **a.manifest.facts}
            for a in artifacts
        ]})  # fmt: skip
        return
    for artifact in artifacts:
        click.echo(str(artifact.path))
