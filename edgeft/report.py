"""Measurements and verdicts -> a table for people and JSON for programs.

    print(table(["artifact", "size"], [["q4_k_m", "105.5 MB"]]))

The tables are aligned Markdown: readable in a terminal, and in a README as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeft.records import Measurement
from edgeft.stage import human

if TYPE_CHECKING:
    from edgeft.benchmarks.paired import Verdict


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned Markdown: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "| " + " | ".join([first, *rest]) + " |"

    rule = "|" + "|".join(
        [f"{'-' * (widths[0] + 2)}", *(f"{'-' * (width + 1)}:" for width in widths[1:])]
    ) + "|"  # fmt: skip
    return "\n".join([line(head), rule, *(line(row) for row in rows)])


def bench_table(rows: Sequence[Measurement]) -> str:
    head = [
        "artifact", "size", "load", "TTFT", "prefill t/s", "decode t/s", "peak memory", "accuracy"
    ]  # fmt: skip
    return table(head, [_bench_row(row) for row in rows])


def _bench_row(row: Measurement) -> list[str]:
    speed, memory, score = row.speed, row.memory, row.score
    return [
        row.name,
        human(row.size),
        f"{speed.load_s:.2f} s" if speed else "-",
        f"{speed.ttft_s * 1000:.0f} ms" if speed else "-",
        f"{speed.prefill_tps:.0f}" if speed else "-",
        f"{speed.decode_tps:.0f}" if speed else "-",
        human(memory.peak) if memory else "-",
        f"{score.accuracy:.1%}" if score else "-",
    ]


def verdict_text(candidate: str, baseline: str, verdict: Verdict) -> str:
    """The verdict for people, a few short lines, the decision first."""
    flips = verdict.lost + verdict.won
    low, high = points(verdict.lower), points(verdict.upper)
    lines = [
        f"{verdict.outcome}: {candidate} against {baseline}",
        f"  {verdict.reason}",
        f"  flips {flips} of {verdict.n} ({verdict.flip_rate:.1%})",
        f"  difference {points(verdict.difference)}, bounds {low} to {high}",
        f"  margin {verdict.margin:.1%}, mid-p {verdict.mid_p:.3f}",
    ]
    return "\n".join(lines)


def points(share: float) -> str:
    return f"{share * 100:+.1f} points" if math.isfinite(share) else "-"


def machine() -> dict[str, Any]:
    """What must be the same before two figures may be compared."""
    import os
    import platform
    from importlib.metadata import version

    model = platform.processor()
    try:
        info = Path("/proc/cpuinfo").read_text()
        model = next(
            line.partition(":")[2].strip()
            for line in info.splitlines()
            if line.startswith("model name")
        )
    except (OSError, StopIteration):
        pass
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "llama_cpp": version("llama-cpp-python"),
    }
