"""A DataReport -> text for a terminal, and one self-contained HTML page.

text(report), html(report)

Rows of data files are hostile text: Jinja escapes them, and the page loads and runs nothing.
"""

from __future__ import annotations

import functools
from pathlib import Path

import jinja2

from edgeft.data.checking import DataReport, Finding
from edgeft.data.preview import CONTROLS
from edgeft.data.row_faults import Severity

SHOWN_PLACES = 3


def text(report: DataReport) -> str:
    """The findings, errors first, each with its first places; then counts, and the decision."""
    lines = [f"{report.rows} rows in {', '.join(report.files)}"]
    lines += [f"read as: {_counted(report.columns)}"] if report.columns else []
    for finding in report.findings:
        lines += ["", f"{finding.severity}: {finding.kind}: {finding.message} ({amount(finding)})"]
        for i, place in enumerate(finding.places[:SHOWN_PLACES]):
            evidence = finding.evidence[i] if i < len(finding.evidence) else ""
            lines.append(f"  {place}  {evidence}".rstrip().translate(CONTROLS))
    lines.append("")
    for name, counts in (
        ("scripts", report.scripts),
        ("classes", report.classes),
        ("tags", report.tags),
    ):
        lines += [f"{name}: {_counted(counts)}"] if counts else []
    if report.tokens:
        t = report.tokens
        lines.append(
            f"tokens: median {t.median}, 95 % at most {t.p95}, longest {t.longest}, {t.total} in all; "
            f"{t.learned:.0%} of them learned; {t.rendered} rows rendered"
        )
    if report.rendered:
        lines += ["the first row, as the chat template writes it, with what is learned in ⟦ ⟧:",
                  report.rendered]  # fmt: skip
    lines += [f"not checked: {reason}" for reason in report.not_checked]
    return "\n".join([*lines, decision(report)])


def decision(report: DataReport) -> str:
    """The last line."""
    severities: tuple[Severity, ...] = ("error", "warning", "note")
    counts = ((report.count(severity), severity) for severity in severities)
    listed = ", ".join(f"{count} {severity}{'s'[: count != 1]}" for count, severity in counts)
    return f"{'do not train on this' if report.exit_code else 'fit to train on'}: {listed}"


def amount(finding: Finding) -> str:
    return (
        f"{finding.rows} row{'s'[: finding.rows != 1]}, {finding.share:.1%}"
        if finding.rows
        else "all"
    )


def _counted(counts: dict[str, int]) -> str:
    shown = [f"{name} ({count})" for name, count in list(counts.items())[:8]]
    more = len(counts) - len(shown)
    return ", ".join(shown) + (f", {more} more" if more > 0 else "")


def html(report: DataReport) -> str:
    template = _environment().get_template("data_page.html.j2")
    return template.render(report=report, decision=decision(report))


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["amount"] = amount
    environment.filters["visible"] = lambda value: str(value).translate(CONTROLS)
    return environment
