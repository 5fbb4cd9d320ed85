"""`edgeft bench`: load time, latency, memory, size, fidelity and task accuracy in tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeft.benchmarks.options import BenchOptions, Effort, EvalOptions
from edgeft.cli._config import configurable
from edgeft.cli._items import items_options
from edgeft.cli._options import (
    budget_options,
    build,
    json_option,
    options_of,
    print_json,
    require_options,
)

FOR_ITEMS = ("shots", "scorer", "limit", "no_cache", "few_shot_data", "max_tokens")
"""options that --items gives a meaning"""
FOR_SPEED = ("sweep", "via", "find_memory_limit", "runs", "seconds", "noise")
"""options that --speed gives a meaning"""


@click.command("bench")
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path))
@items_options()
@options_of(
    BenchOptions,
    skip=("artifacts", "effort"),
    text=click.Path(path_type=Path, dir_okay=False),
    chunks=click.IntRange(min=2),
    chats=click.Path(path_type=Path, dir_okay=False),
    save_baseline=click.Path(path_type=Path, dir_okay=False),
    shots=click.IntRange(min=0),
)
@options_of(
    Effort,
    only=("runs", "seconds", "noise"),
    runs=click.IntRange(min=2),
    seconds=click.FloatRange(min=0),
    noise={"name": "--max-noise", "type": click.FloatRange(0, min_open=True)},
)
@budget_options
@json_option
@configurable
@click.pass_context
def command(ctx: click.Context, /, as_json: bool, **options: Any) -> None:
    """Measure artifacts on this machine, each in a process of its own, by turns.

    \b
    edgeft bench out/q8_0.gguf out/q4_k_m.gguf --baseline out/f16.gguf --items smart_home
    edgeft bench out/q4_k_m.gguf --baseline out/f16.gguf --text wiki.txt --chats chats.jsonl
    """
    from edgeft import machine
    from edgeft.benchmarks.bench import run_bench
    from edgeft.benchmarks.fidelity.kept_baseline import SUFFIX
    from edgeft.report.measured import bench_text

    require_options(ctx, **dict.fromkeys(FOR_ITEMS, "items"), **dict.fromkeys(FOR_SPEED, "speed"))
    if options["save_baseline"] and options["save_baseline"].suffix != SUFFIX:
        raise click.UsageError(f"--save-baseline needs a file that ends in {SUFFIX}")
    eval_options = build(EvalOptions, options)
    rows = run_bench(build(BenchOptions, options, effort=build(Effort, options)), eval_options)
    if as_json:
        print_json({"machine": machine.describe_machine(), "rows": [row.to_json() for row in rows]})
        return
    click.echo(bench_text(rows))
