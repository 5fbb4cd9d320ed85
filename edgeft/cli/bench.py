"""`edgeft bench`: load time, latency, memory, size, fidelity and task accuracy in tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeft.cli._options import asking, configurable, finite, json_option, needs, print_json


@click.command("bench", short_help="Speed, memory, fidelity and accuracy of artifacts, in tables.")
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    help="The fp16 model that all are compared with, or what --keep made of one.",
)
@click.option("--items", help="Embedded suite (smart_home) or a JSONL file; none = no accuracy.")
@asking
@click.option(
    "--shots",
    type=click.IntRange(min=0),
    help="Ask as a base model is asked: with instructions and so many examples.",
)
@click.option(
    "--speed/--no-speed", default=True, show_default=True, help="Measure speed and memory too."
)
@click.option("--grid", is_flag=True, help="3 prompt lengths x 2 answer lengths x 1, 2, 4 clients.")
@click.option(
    "--through",
    type=click.Choice(["runtime", "server"]),
    default="runtime",
    show_default=True,
    help="server: latency as the clients of edgeft serve see it, over HTTP.",
)
@click.option(
    "--runs",
    type=click.IntRange(min=2),
    default=20,
    show_default=True,
    help="Of each use, at most.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0),
    callback=finite,
    default=60.0,
    show_default=True,
    help="For each use, after which no further run begins (at least 5 runs are made, or --runs).",
)
@click.option(
    "--max-noise",
    "noise",
    type=click.FloatRange(0, min_open=True),
    callback=finite,
    default=0.05,
    show_default=True,
    help="Coefficient of variation above which nothing is compared.",
)
@click.option(
    "--smallest-memory",
    "smallest",
    is_flag=True,
    help="Find the smallest memory limit that keeps 95 % of the speed (needs the right to make "
    "cgroups).",
)
@click.option(
    "--text",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Plain text: perplexity and KL divergence from --baseline.",
)
@click.option(
    "--chunks", type=click.IntRange(min=2), default=40, show_default=True, help="Of 512 tokens."
)
@click.option(
    "--chats",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Conversations: the same on their answers, under the model's template.",
)
@click.option(
    "--keep",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep the baseline's distributions in this file (.logprobs), to be a --baseline.",
)
@json_option
@configurable
@click.pass_context
def command(
    ctx: click.Context, /, runs: int, seconds: float, noise: float, as_json: bool, **options: Any
) -> None:
    """Measure artifacts on this machine, each in a process of its own, by turns.

    \b
    edgeft bench out/q8_0.gguf out/q4_k_m.gguf --baseline out/f16.gguf --items smart_home
    edgeft bench out/q4_k_m.gguf --baseline out/f16.gguf --text wiki.txt --chats chats.jsonl
    """
    from edgeft import machine
    from edgeft.benchmarks.bench import BenchOptions, run_bench
    from edgeft.benchmarks.fidelity.kept_baseline import SUFFIX
    from edgeft.benchmarks.performance.latency import Effort
    from edgeft.benchmarks.quality.evaluate import EvalOptions
    from edgeft.report.measured import bench_text

    for_items = ("shots", "scorer", "limit", "fresh", "examples", "max_tokens")
    for_speed = ("grid", "through", "smallest", "runs", "seconds", "noise")
    needs(ctx, **dict.fromkeys(for_items, "items"), **dict.fromkeys(for_speed, "speed"))
    own = {
        name: options.pop(name)
        for name in list(options)
        if name in BenchOptions.__dataclass_fields__
    }
    how = EvalOptions(**options)
    if own["keep"] and own["keep"].suffix != SUFFIX:
        raise click.UsageError(f"--keep needs a file that ends in {SUFFIX}")
    rows = run_bench(
        BenchOptions(effort=Effort(runs=runs, seconds=seconds, noise=noise), **own), how
    )
    if as_json:
        print_json({"machine": machine.describe_machine(), "rows": [row.to_json() for row in rows]})
        return
    click.echo(bench_text(rows))
