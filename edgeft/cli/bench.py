"""`edgeft bench`: load time, TTFT, tokens/s, memory, size and task accuracy in one table."""

from __future__ import annotations

from pathlib import Path

import click

from edgeft.cli._options import configurable, json_option, print_json


@click.command("bench", short_help="Speed, memory and task accuracy of artifacts, in one table.")
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--items", help="Embedded suite (smart_home) or a JSONL file; none = no accuracy.")
@click.option("--scorer", help="json or exact.  [default: the suite's, else exact]")
@click.option(
    "--shots",
    type=click.IntRange(min=0),
    help="Ask as a base model is asked: with instructions and so many examples.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many items.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Of an answer.")
@click.option(
    "--speed/--no-speed",
    "with_speed",
    default=True,
    show_default=True,
    help="Measure speed and memory too.",
)
@click.option("--threads", type=click.IntRange(min=1), help="[default: all cores]")
@click.option("--fresh", is_flag=True, help="Answer again where a score is kept.")
@json_option
@configurable
def command(
    artifacts: tuple[Path, ...], items: str | None, scorer: str | None, shots: int | None,
    limit: int | None, max_tokens: int | None, with_speed: bool, threads: int | None, fresh: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Measure artifacts on this machine; the first is usually the fp16 model.

    \b
    edgeft bench out/f16.gguf out/q8_0.gguf out/q4_k_m.gguf --items smart_home
    """
    from edgeft import report
    from edgeft.benchmarks import quality, speed
    from edgeft.formats import format_of
    from edgeft.records import Measurement

    loaded = quality.load_items(items, scorer, max_tokens, limit) if items else None
    for artifact in artifacts:
        format_of(artifact)
    rows = []
    for artifact in artifacts:
        score = quality.measure(artifact, loaded, shots, threads, fresh) if loaded else None
        timing, memory = speed.measure(artifact, threads) if with_speed else (None, None)
        name = score.arm if score else artifact.stem
        size = quality.size_of(artifact)
        rows.append(Measurement(name, str(artifact), size, timing, memory, score))
    if as_json:
        print_json({"machine": report.machine(), "rows": [row.to_json() for row in rows]})
        return
    click.echo(report.bench_table(rows))
