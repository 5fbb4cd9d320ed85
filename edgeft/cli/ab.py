"""`edgeft ab`: candidates against a baseline on the same items -> a decision and an exit code."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import click

from edgeft import store
from edgeft.benchmarks.options import EvalOptions
from edgeft.cli._config import configurable
from edgeft.cli._items import as_typed_command, items_options, report_option
from edgeft.cli._options import (
    build,
    is_typed,
    json_option,
    options_of,
    print_json,
    require_options,
)
from edgeft.human.options import VotingOptions
from edgeft.records import EXIT_CODES
from edgeft.release.options import GateOptions


def _names(cls: type[Any]) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


@click.command("ab")
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path))
@items_options(required=True)
@options_of(
    GateOptions,
    skip=("candidates", "baseline"),
    shots=click.IntRange(min=0),
    margin=click.FloatRange(0, 1, min_open=True, max_open=True),
    min_retention=click.FloatRange(0, 1, min_open=True),
    general={"is_flag": False, "flag_value": "general", "metavar": "[SUITE|FILE]"},
    max_forgotten=click.FloatRange(0, 1, min_open=True, max_open=True),
    speed={"name": "--speed/--no-speed"},
    fidelity={"name": "--fidelity/--no-fidelity"},
    repeat_baseline={"name": "--repeat-baseline/--no-repeat-baseline"},
)
@report_option
@click.option("--human", is_flag=True, help="People vote blindly on two artifacts, in a browser.")
@options_of(
    VotingOptions,
    votes=click.Path(path_type=Path, dir_okay=False),
    port=click.IntRange(0, 65535),
)
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
    edgeft ab out/q4_k_m.gguf out/f16.gguf --items items.jsonl --base base/f16.gguf --general
    edgeft ab out/q4_k_m.gguf out/f16.gguf --items items.jsonl --human

    With --human nothing is gated: exit code 0 = votes were counted, 4 = there are none.
    """
    from edgeft.release.gate import run_gate
    from edgeft.report import storage, tables

    _check_general(options["general"])
    if len(artifacts) < 2:
        raise click.UsageError("two artifacts at least: CANDIDATE... BASELINE")
    _check_combination(ctx, human)
    eval_options = build(EvalOptions, options)
    voting = build(VotingOptions, options)
    if human:
        ctx.exit(_vote(artifacts, eval_options, voting, as_json))
    require_options(
        ctx, shots="base", min_retention="base", few_shot_data="base", general="base",
        general_scorer="general", max_forgotten="general",
    )  # fmt: skip
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    gated = build(GateOptions, options, candidates=artifacts[:-1], baseline=artifacts[-1])
    release = run_gate(gated, eval_options, [as_typed_command(sys.argv)])
    if as_json:
        print_json(release.to_json())
    else:
        click.echo(tables.release_text(release))
    if folder:
        storage.write(release, folder)
    ctx.exit(EXIT_CODES[release.outcome])


def _check_general(value: str | None) -> None:
    """UsageError where --general, whose value may be left out, took an artifact as its value."""
    manifest = store.read_manifest(Path(value)) if value else None
    if value and (value.endswith(".gguf") or (manifest and manifest.kind == "artifact")):
        raise click.UsageError(
            f"--general took {value} as its value: put --general last, or write --general general"
        )


def _check_combination(ctx: click.Context, human: bool) -> None:
    """UsageError for an option that the comparison would ignore: of the gate or of the votes."""
    ignored = [*_names(GateOptions), "folder"] if human else _names(VotingOptions)
    for param in ctx.command.params:
        if param.name in ignored and is_typed(ctx, param.name):
            how = "cannot be combined with" if human else "needs"
            raise click.UsageError(f"{param.opts[0]} {how} --human")


def _vote(
    artifacts: tuple[Path, ...], eval_options: EvalOptions, voting: VotingOptions, as_json: bool
) -> int:
    from edgeft.human import result_text, run_voting

    if len(artifacts) != 2:
        raise click.UsageError("--human compares exactly two artifacts")
    result = run_voting(*artifacts, eval_options, voting)
    if as_json:
        print_json(result.to_json())
    else:
        click.echo(result_text(result))
    return 0 if result.total.n else EXIT_CODES["INCONCLUSIVE"]
