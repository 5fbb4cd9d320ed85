"""`edgeft search`: adapter and budget -> the smallest artifact that passes the gate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from edgeft.benchmarks.options import EvalOptions
from edgeft.cli._config import configurable
from edgeft.cli._items import as_typed_command, items_options, report_option
from edgeft.cli._options import (
    Bytes,
    build,
    json_option,
    options_of,
    print_json,
)
from edgeft.export.options import ExportOptions
from edgeft.records import EXIT_CODES
from edgeft.release.options import SearchOptions


@click.command("search")
@options_of(
    ExportOptions,
    only=("adapter", "base", "out", "formats", "quants", "overwrite"),
    adapter={
        "type": click.Path(path_type=Path),
        "multiple": True,
        "help": "Adapter in peft's format; without one the base is compressed as it is.",
    },
    formats={"name": "--format", "help": "gguf, onnx or gptq; repeatable. Default: gguf."},
    quants={
        "name": "--quant",
        "help": "Only these; repeatable. Default: for gguf q8_0 to q2_k, for onnx int8 to int4.",
    },
)
@items_options(required=True)
@options_of(
    SearchOptions,
    skip=("export",),
    margin=click.FloatRange(0, 1, min_open=True, max_open=True),
    max_size=Bytes(),
    max_memory=Bytes(),
    min_tps=click.FloatRange(0, min_open=True),
    jobs=click.IntRange(min=1),
    ray={"metavar": "ADDRESS"},
)
@report_option
@json_option
@configurable
@click.pass_context
def command(ctx: click.Context, /, folder: Path | None, as_json: bool, **options: Any) -> None:
    """Export from large to small, drop what does not fit, and gate the rest against f16.

    Exit code 0 = something may be shipped, 3 = FAIL, 4 = INCONCLUSIVE, as ab's.

    \b
    edgeft search --adapter adapter --out out --items smart_home --max-memory 250M --min-tps 20
    """
    from edgeft.adapter.read import Weighted
    from edgeft.release.search import run_search
    from edgeft.report import storage, tables

    if options["early_stop"] and (options["jobs"] > 1 or options["ray"]):
        raise click.UsageError("--early-stop answers in turns, without --jobs or --ray")
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    options["adapter"] = tuple(Weighted(path) for path in options["adapter"])
    eval_options = build(EvalOptions, options)
    threads = {"threads": eval_options.threads} if eval_options.threads else {}
    max_size = options.pop("max_size")  # a field of both
    export = build(ExportOptions, options, **threads)
    search = build(SearchOptions, options, export=export, max_size=max_size)
    release = run_search(search, eval_options, [as_typed_command(sys.argv)])
    if as_json:
        print_json(release.to_json())
    else:
        click.echo(tables.release_text(release))
    if folder:
        storage.write(release, folder)
    ctx.exit(EXIT_CODES[release.outcome])
