"""Rows of text, or a release -> aligned Markdown tables, readable in a terminal and in a README.

print(table(["artifact", "size"], [["q4_k_m", "105.5 MB"]]))
print(release_text(release))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeft.files import format_bytes
from edgeft.records import Arm, Release


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column is aligned to the left, the others to the right."""
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
    """The text without line breaks and with `|` escaped."""
    return " ".join(text.split()).replace("|", "\\|")


def release_text(release: Release) -> str:
    """For a terminal: the decision, the reason, the table of arms, the notes."""
    ship = f": ship {release.ship}" if release.ship else ""
    notes = [f"  {note}" for note in release.notes]
    return "\n".join(
        [f"{release.outcome}{ship}", f"  {release.reason}", "", arms_table(release.arms),
         *task_lines(release), *forgetting_lines(release), *notes]
    )  # fmt: skip


def arms_table(arms: Sequence[Arm]) -> str:
    """A row per arm; columns in which no arm has a value are left out."""
    head = ["model", "accuracy", "size", "peak memory", "prefill t/s", "decode t/s", "lost", "won",
            "difference", "gain left", "verdict"]  # fmt: skip
    rows = [_arm_row(arm) for arm in arms]
    used = [i for i in range(len(head)) if i < 3 or any(row[i] for row in rows)]
    return table([head[i] for i in used], [[row[i] for i in used] for row in rows])


def task_lines(release: Release) -> list[str]:
    """Accuracy per task, where the scorer names tasks by tag (`exact,sum=numeric`); [] otherwise."""
    tasks = {
        part.rpartition("=")[0].strip() for part in str(release.task.get("scorer")).split(",")
    } - {""}
    tested = [arm for arm in release.arms if arm.slices]
    by_arm = [{one["tag"]: one for one in arm.slices} for arm in tested]
    rows = [
        [tag, str(first["n"]), f"{first['base']:.1%}" if first.get("base") is not None else "",
         f"{first['baseline']:.1%}", *(f"{of_arm[tag]['accuracy']:.1%}" for of_arm in by_arm)]
        for tag, first in (by_arm[0].items() if by_arm else ())
        if tag in tasks and all(tag in of_arm for of_arm in by_arm)
    ]  # fmt: skip
    if not rows:
        return []
    head = ["task", "items", "base", "baseline", *(arm.name for arm in tested)]
    used = [i for i in range(len(head)) if any(row[i] for row in rows)]
    shown = table([head[i] for i in used], [[row[i] for i in used] for row in rows])
    return ["", "Accuracy per task:", "", shown, ""]


def forgetting_lines(release: Release) -> list[str]:
    """What was forgotten, as a title and a table between empty lines; [] where it was not measured."""
    forgetting = release.forgetting
    if not forgetting:
        return []
    bound = forgetting.get("bound")
    held = f", at most {100 * bound:.4g} points may be lost" if bound else ""
    head = ["model", "accuracy", "lost", "won", "difference", "gain on the task", "verdict"]
    rows = [
        [name, f"{arm['accuracy']:.1%}", str(arm.get("lost", "")), str(arm.get("won", "")),
         _difference(arm) if "difference" in arm else "",
         points(arm["gain"]) if arm.get("gain") is not None else "", arm.get("outcome") or ""]
        for name, arm in forgetting["arms"].items()
    ]  # fmt: skip
    title = f"General items against the base ({forgetting['items']} of {forgetting['name']}{held}):"
    used = [i for i in range(len(head)) if i < 5 or any(row[i] for row in rows)]
    shown = table([head[i] for i in used], [[row[i] for i in used] for row in rows])
    return ["", title, "", shown, ""]


def _arm_row(arm: Arm) -> list[str]:
    speed, memory, verdict, retention = (
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
        f"{retention['value']:.0%}" if retention.get("value") is not None else "",
        verdict.get("outcome", ""),
    ]


def _difference(verdict: dict[str, Any]) -> str:
    """With its lower bound, if there is one."""
    lower = verdict.get("lower")
    bound = f" (≥ {points(lower)})" if lower is not None else ""
    return points(verdict["difference"]) + bound


def points(share: float) -> str:
    """A difference of accuracies in percentage points."""
    return f"{share * 100:+.1f} points"
