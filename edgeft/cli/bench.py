"""`edgeft bench`: load time, TTFT, tokens/s, memory, size and task accuracy in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeft.cli._options import asking, configurable, json_option, print_json


@click.command("bench", short_help="Speed, memory and task accuracy of artifacts, in one table.")
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--items", help="Embedded suite (smart_home) or a JSONL file; none = no accuracy.")
@asking
@click.option(
    "--shots",
    type=click.IntRange(min=0),
    help="Ask as a base model is asked: with instructions and so many examples.",
)
@click.option(
    "--speed/--no-speed",
    "with_speed",
    default=True,
    show_default=True,
    help="Measure speed and memory too.",
)
@json_option
@configurable
def command(
    artifacts: tuple[Path, ...], shots: int | None, with_speed: bool, as_json: bool, **asked: Any
) -> None:
    """Measure artifacts on this machine; the first is usually the fp16 model.

    \b
    edgeft bench out/f16.gguf out/q8_0.gguf out/q4_k_m.gguf --items smart_home
    """
    from edgeft import report
    from edgeft.benchmarks import quality, speed
    from edgeft.formats import format_of
    from edgeft.records import Measurement

    how = quality.Asking(**asked)
    if shots is not None and not how.items:
        raise click.UsageError("--shots needs --items")
    items = quality.load_items(how) if how.items else None
    for artifact in artifacts:
        format_of(artifact)
    rows = []
    for artifact in artifacts:
        score = quality.measure(artifact, items, how, shots) if items else None
        timing, memory = speed.measure(artifact, how.threads) if with_speed else (None, None)
        name = score.arm if score else artifact.stem
        size = quality.size_of(artifact)
        rows.append(Measurement(name, str(artifact), size, timing, memory, score))
    if as_json:
        print_json({"machine": report.machine(), "rows": [row.to_json() for row in rows]})
        return
    click.echo(report.bench_table(rows))
