"""`edgeft sweep`: run.toml with a table [sweep] -> trials, their table, and the winner by validation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeft import machine
from edgeft.cli._items import pop_eval_options
from edgeft.cli._options import build, columns, json_option, options_of, print_json
from edgeft.cli._sweep_file import read_run, read_sweep_table
from edgeft.progress import say
from edgeft.sweep.options import SweepOptions

if TYPE_CHECKING:
    from edgeft.sweep.run import SweepResult

NOT_OF_A_TRIAL = ("preview", "show_config", "resume", "overwrite", "as_json", "output")
"""parameters of `edgeft train` that the sweep decides"""


@click.command("sweep")
@click.argument(
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    is_eager=True,
    callback=read_sweep_table,
)
@options_of(
    SweepOptions,
    skip=("run", "space", "items"),
    trials=click.IntRange(min=1),
    reduction_factor=click.IntRange(min=2),
    jobs=click.IntRange(min=1),
    ray={"metavar": "ADDRESS"},
)
@json_option
@click.pass_context
def command(ctx: click.Context, /, file: Path, as_json: bool, **options: Any) -> None:
    """Train once for each choice of values in the table [sweep] of FILE, and keep the best.

    FILE is a file for `edgeft train --config`. In [sweep], a list names the values of an option of
    train, and {low = 1e-5, high = 1e-3, log = true} a range; any other key is an option of this command. The
    same command goes on where it was stopped.

    \b
    edgeft sweep run.toml --output out
    edgeft sweep run.toml --output out --sampler tpe --trials 20 --jobs 2
    """
    from edgeft.sweep.run import sweep

    run, space = read_run(ctx, file)
    items = pop_eval_options(run)
    budget = build(machine.Budget, run)
    run = {name: value for name, value in run.items() if name not in NOT_OF_A_TRIAL}
    chosen = build(SweepOptions, options, run=run, space=space, items=items)
    try:
        with machine.limited(budget):
            result = sweep(chosen)
    except KeyboardInterrupt:
        say("stopped; the same command goes on from here")
        raise
    if as_json:
        print_json(result.to_json())
    else:
        click.echo("\n".join(_lines(result, list(space))))


def _lines(result: SweepResult, names: list[str]) -> list[str]:
    """The table from the best to the worst, then the winner."""
    from edgeft.report.sweep_page import NAMES
    from edgeft.sweep.space import shown

    assert result.best
    rows = [
        (
            "trial",
            *(name.replace("_", "-") for name in names),
            NAMES[result.measure],
            "step",
            "status",
        )
    ]
    for trial in result.ranked():
        step, value = trial.score_step, trial.score
        if value is None and trial.curve:
            step, value = trial.curve[-1]
        status = "winner" if trial is result.best else trial.status
        rows.append((
            str(trial.number),
            *(shown(trial.values[name]) for name in names),
            "" if value is None else f"{value:.4f}",
            "" if step is None else str(step),
            f"{status}: {trial.error}" if trial.error else status,
        ))  # fmt: skip
    return [*columns(rows), "", result.command, str(result.adapter)]
