"""Measurements and verdicts -> tables and a page for people, JSON for programs.

    print(table(["artifact", "size"], [["q4_k_m", "105.5 MB"]]))
    write(release, Path("report"))              # report.html, report.json, report.md
    read(Path("report/report.json"))            # the release again

The tables are aligned Markdown: readable in a terminal, and in a README as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeft.files import format_bytes
from edgeft.records import Arm, Release


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned Markdown: the first column to the left, the others to the right."""
    head, *rows = ([one_line(text) for text in row] for row in (head, *rows))
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "| " + " | ".join([first, *rest]) + " |"

    rule = "|" + "|".join(
        [f"{'-' * (widths[0] + 2)}", *(f"{'-' * (width + 1)}:" for width in widths[1:])]
    ) + "|"  # fmt: skip
    return "\n".join([line(head), rule, *(line(row) for row in rows)])


def one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def release_text(release: Release) -> str:
    """The decision first, then the arms, for a terminal."""
    ship = f": ship {release.ship}" if release.ship else ""
    notes = [f"  {note}" for note in release.notes]
    return "\n".join(
        [f"{release.outcome}{ship}", f"  {release.reason}", "", arms_table(release.arms), *notes]
    )


def arms_table(arms: Sequence[Arm]) -> str:
    """What was measured of any arm."""
    head = ["model", "accuracy", "size", "peak memory", "prefill t/s", "decode t/s", "lost", "won",
            "difference", "gain left", "verdict"]  # fmt: skip
    rows = [_arm_row(arm) for arm in arms]
    used = [i for i in range(len(head)) if i < 3 or any(row[i] for row in rows)]
    return table([head[i] for i in used], [[row[i] for i in used] for row in rows])


def _arm_row(arm: Arm) -> list[str]:
    speed, memory, verdict, kept = (
        part or {} for part in (arm.speed, arm.memory, arm.verdict, arm.retention)
    )
    return [
        arm.name,
        f"{arm.accuracy:.1%}" if arm.accuracy is not None else "",
        format_bytes(arm.size),
        format_bytes(memory["peak"]) if memory.get("peak") else "",
        f"{speed['prefill_tps']:.0f}" if speed.get("prefill_tps") else "",
        f"{speed['decode_tps']:.0f}" if speed.get("decode_tps") else "",
        str(verdict.get("lost", "")),
        str(verdict.get("won", "")),
        _difference(verdict) if verdict else "",
        f"{kept['value']:.0%}" if kept.get("value") is not None else "",
        verdict.get("outcome", ""),
    ]


def _difference(verdict: dict[str, Any]) -> str:
    lower = verdict.get("lower")
    bound = f" (≥ {points(lower)})" if lower is not None else ""
    return points(verdict["difference"]) + bound


def points(share: float) -> str:
    return f"{share * 100:+.1f} points"
