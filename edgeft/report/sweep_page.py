"""sweep.json of `edgeft sweep` -> a page with the table of the trials and their validation curves.

    write_page(json.loads(Path("out/sweep.json").read_text()), Path("out/sweep.html"))

The page is self-contained as that of a release, and every text is escaped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeft.files import write_text
from edgeft.report import plots

NAMES = {"loss": "validation loss", "accuracy": "accuracy"}
UNITS = {"loss": "nats per token", "accuracy": "share of the items"}


def write_page(sweep: dict[str, Any], path: Path) -> None:
    """Write the HTML page, whole or absent."""
    write_text(path, html(sweep))


def html(sweep: dict[str, Any]) -> str:
    """The winner with its command, the table, the curves, and the options of all trials."""
    from edgeft.report.page import environment

    return environment().get_template("sweep.html.j2").render(
        sweep=sweep, measure=NAMES[sweep["measure"]], plot=curves_plot(sweep),
        names=list(sweep["request"]["space"]),
    )  # fmt: skip


def curves_plot(sweep: dict[str, Any]) -> Any:
    """The measure of every trial against the step, as inline SVG; None where there is none yet."""
    best = (sweep["best"] or {}).get("number")
    trials = [trial for trial in sweep["trials"] if trial["curve"]]
    lines = [
        plots.Line(
            str(trial["number"]),
            "validation" if trial["number"] == best else "training",
            [(step, value) for step, value in trial["curve"]],
        )
        for trial in sorted(trials, key=lambda trial: trial["number"] == best)
    ]
    if not lines:
        return None
    name = NAMES[sweep["measure"]]
    return plots.curves(
        "sweep-curves",
        name.capitalize(),
        lines,
        "step",
        UNITS[sweep["measure"]],
        names_at_ends=True,
    )
