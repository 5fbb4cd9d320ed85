"""`edgeft ab`: candidate against baseline on the same items -> a verdict and an exit code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeft.cli._options import asking, configurable, json_option, print_json


@click.command("ab", short_help="Release gate: candidate against baseline on the same items.")
@click.argument("candidate", type=click.Path(path_type=Path))
@click.argument("baseline", type=click.Path(path_type=Path))
@click.option("--items", required=True, help="Embedded suite (smart_home) or a JSONL file.")
@asking
@click.option(
    "--margin",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Loss that is still acceptable, as a share.  [default: .05, .03 from 400 items, .02 "
    "from 1500]",
)
@json_option
@configurable
@click.pass_context
def command(
    ctx: click.Context,
    /,
    candidate: Path,
    baseline: Path,
    margin: float | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """Is the candidate no worse than the baseline? A paired non-inferiority test.

    Exit code 0 = PASS, 3 = FAIL, 4 = INCONCLUSIVE (with the number of items that would decide).

    \b
    edgeft ab out/q4_k_m.gguf out/f16.gguf --items smart_home
    """
    from edgeft import report
    from edgeft.benchmarks import quality
    from edgeft.benchmarks.paired import Paired, judge

    how = quality.Asking(**asked)
    items = quality.load_items(how)
    before = quality.measure(baseline, items, how)
    after = quality.measure(candidate, items, how)
    verdict = judge(Paired.count(before.values, after.values), margin)
    if as_json:
        arms = {"candidate": str(candidate), "baseline": str(baseline)}
        accuracy = {"candidate_accuracy": after.accuracy, "baseline_accuracy": before.accuracy}
        print_json({**arms, **accuracy, **verdict.to_json()})
    else:
        one, other = (f"{s.arm} ({s.accuracy:.1%})" for s in (after, before))
        click.echo(report.verdict_text(one, other, verdict))
    ctx.exit(verdict.exit_code)
