"""`edgeft ab`: candidates against a baseline on the same items -> a decision and an exit code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from edgeft.cli._options import (
    EXIT_CODES,
    as_typed_command,
    asking,
    configurable,
    json_option,
    print_json,
)


@click.command("ab", short_help="Release gate: candidates against a baseline on the same items.")
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--items", required=True, help="Embedded suite (smart_home) or a JSON or JSONL file.")
@asking
@click.option(
    "--margin",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Loss that is still acceptable, as a share.  [default: .05, .03 from 400 items, .02 "
    "from 1500]",
)
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    help="The model before the fine-tune, asked with instructions, with and without examples: how "
    "much of the gain is left?",
)
@click.option(
    "--shots",
    type=click.IntRange(min=0),
    default=4,
    show_default=True,
    help="Examples that the base is shown; 0 = none.",
)
@click.option(
    "--keeps",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.9,
    show_default=True,
    help="Share of the gain that should be left.",
)
@click.option(
    "--refusals",
    type=click.Path(path_type=Path),
    help="CSV with prompt and label (safe, unsafe), as XSTest's: refusals must pass, too.",
)
@click.option("--early-stop", is_flag=True, help="Stop as soon as the items seen decide.")
@click.option("--speed/--no-speed", default=False, help="Measure speed and memory too.")
@click.option(
    "--fidelity/--no-fidelity",
    default=False,
    help="KL divergence from the baseline on the items' answers, too.",
)
@click.option(
    "--floor/--no-floor",
    default=False,
    help="The baseline against itself with other threads, too: what differs by chance.",
)
@click.option(
    "--report",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for report.html, report.json and report.md.",
)
@json_option
@configurable
@click.pass_context
def command(
    ctx: click.Context,
    /,
    artifacts: tuple[Path, ...],
    folder: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Which of the candidates is no worse than the baseline, the last of ARTIFACTS?

    A paired non-inferiority test for each, from the largest to the smallest file, up to the first that
    does not pass. Exit code 0 = PASS (one may be shipped), 3 = FAIL, 4 = INCONCLUSIVE (with the number
    of items that would decide).

    \b
    edgeft ab out/q4_k_m.gguf out/f16.gguf --items smart_home
    edgeft ab out/q8_0.gguf out/q4_k_m.gguf out/f16.gguf --items items.jsonl --report report
    """
    from edgeft import report
    from edgeft.benchmarks.quality import Asking
    from edgeft.release import Gate, gate

    if len(artifacts) < 2:
        raise click.UsageError("two artifacts at least: CANDIDATE... BASELINE")
    own = {name: options.pop(name) for name in list(options) if name in Gate.__dataclass_fields__}
    chosen = Gate(candidates=artifacts[:-1], baseline=artifacts[-1], **own)
    release = gate(chosen, Asking(**options), [as_typed_command(sys.argv)])
    if folder:
        report.write(release, folder)
    if as_json:
        print_json(release.to_json())
    else:
        click.echo(report.release_text(release))
    ctx.exit(EXIT_CODES[release.outcome])
