"""`edgeft ab`: candidate against baseline on the same items -> a verdict and an exit code."""

from __future__ import annotations

from pathlib import Path

import click

from edgeft.cli._options import configurable, json_option, print_json


@click.command("ab", short_help="Release gate: candidate against baseline on the same items.")
@click.argument("candidate", type=click.Path(path_type=Path))
@click.argument("baseline", type=click.Path(path_type=Path))
@click.option("--items", required=True, help="Embedded suite (smart_home) or a JSONL file.")
@click.option("--scorer", help="json or exact.  [default: the suite's, else exact]")
@click.option(
    "--margin",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Loss that is still acceptable, as a share.  [default: .05, .03 from 400 "
    "items, .02 from 1500]",
)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many items.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Of an answer.")
@click.option("--threads", type=click.IntRange(min=1), help="[default: all cores]")
@click.option("--fresh", is_flag=True, help="Answer again where a score is kept.")
@json_option
@configurable
@click.pass_context
def command(
    ctx: click.Context, candidate: Path, baseline: Path, items: str, scorer: str | None,
    margin: float | None, limit: int | None, max_tokens: int | None, threads: int | None,
    fresh: bool, as_json: bool,
) -> None:  # fmt: skip
    """Is the candidate no worse than the baseline? A paired non-inferiority test.

    Exit code 0 = PASS, 3 = FAIL, 4 = INCONCLUSIVE (with the number of items that would decide).

    \b
    edgeft ab out/q4_k_m.gguf out/f16.gguf --items smart_home
    """
    from edgeft import report
    from edgeft.benchmarks import quality
    from edgeft.benchmarks.paired import Paired, judge

    loaded = quality.load_items(items, scorer, max_tokens, limit)
    before = quality.measure(baseline, loaded, None, threads, fresh)
    after = quality.measure(candidate, loaded, None, threads, fresh)
    verdict = judge(Paired.count(before.correct, after.correct), margin)
    if as_json:
        print_json({"candidate": str(candidate), "baseline": str(baseline), **verdict.to_json()})
    else:
        click.echo(report.verdict_text(candidate.stem, baseline.stem, verdict))
    ctx.exit(verdict.exit_code)
