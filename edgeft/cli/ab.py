"""`edgeft ab`: candidates against a baseline on the same items -> a decision and an exit code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from edgeft.cli._options import (
    as_typed_command,
    asking,
    configurable,
    finite,
    json_option,
    needs,
    print_json,
)
from edgeft.records import EXIT_CODES

if TYPE_CHECKING:
    from edgeft.benchmarks.quality.evaluate import Asking

VOTING = ("votes", "rater", "port", "no_browser")
"""options that only --human has"""


@click.command("ab", short_help="Release gate: candidates against a baseline on the same items.")
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--items", required=True, help="Embedded suite (smart_home) or a JSON or JSONL file.")
@asking
@click.option(
    "--margin",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    callback=finite,
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
    callback=finite,
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
@click.option("--human", is_flag=True, help="People vote blindly on two artifacts, in a browser.")
@click.option(
    "--votes",
    type=click.Path(path_type=Path, dir_okay=False),
    help="With --human: JSONL file that votes are kept in.  [default: A-B.votes.jsonl]",
)
@click.option("--rater", default="", help="With --human: who votes, where several people do.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    help="With --human: of the page.  [default: a free one]",
)
@click.option("--no-browser", is_flag=True, help="With --human: only print the page's address.")
@json_option
@configurable
@click.pass_context
def command(
    ctx: click.Context,
    /,
    artifacts: tuple[Path, ...],
    folder: Path | None,
    human: bool,
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
    edgeft ab out/q4_k_m.gguf out/f16.gguf --items items.jsonl --human

    With --human nothing is gated: exit code 0 = votes were counted, 4 = there are none.
    """
    from edgeft.benchmarks.quality.evaluate import Asking
    from edgeft.release.gate import Gate, gate
    from edgeft.report import storage, tables

    if len(artifacts) < 2:
        raise click.UsageError("two artifacts at least: CANDIDATE... BASELINE")
    voting = {name: options.pop(name) for name in VOTING}
    _check_given(ctx, human, set(Gate.__dataclass_fields__) | {"folder"})
    if human:
        kept = {name: options[name] for name in Asking.__dataclass_fields__}
        ctx.exit(_vote(artifacts, Asking(**kept), as_json, **voting))
    needs(ctx, shots="base", keeps="base", examples="base")
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    own = {name: options.pop(name) for name in list(options) if name in Gate.__dataclass_fields__}
    chosen = Gate(candidates=artifacts[:-1], baseline=artifacts[-1], **own)
    release = gate(chosen, Asking(**options), [as_typed_command(sys.argv)])
    if as_json:
        print_json(release.to_json())
    else:
        click.echo(tables.release_text(release))
    if folder:
        storage.write(release, folder)
    ctx.exit(EXIT_CODES[release.outcome])


def _check_given(ctx: click.Context, human: bool, gating: set[str]) -> None:
    """Usage error for an option that the chosen kind of comparison would ignore."""
    for param in ctx.command.params:
        given = ctx.get_parameter_source(str(param.name)) is ParameterSource.COMMANDLINE
        if given and param.name in (gating if human else VOTING):
            how = "cannot be combined with" if human else "needs"
            raise click.UsageError(f"{param.opts[-1]} {how} --human")


def _vote(
    artifacts: tuple[Path, ...],
    asking: Asking,
    as_json: bool,
    votes: Path | None,
    rater: str,
    port: int,
    no_browser: bool,
) -> int:
    from edgeft.human import VotingOptions, result_text, run_voting

    if len(artifacts) != 2:
        raise click.UsageError("--human compares exactly two artifacts")
    result = run_voting(*artifacts, asking, VotingOptions(votes, rater, port, not no_browser))
    if as_json:
        print_json(result.to_json())
    else:
        click.echo(result_text(result))
    return 0 if result.total.n else EXIT_CODES["INCONCLUSIVE"]
