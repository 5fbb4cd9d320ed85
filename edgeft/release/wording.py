"""Verdicts and retention -> sentences, and the objects of report.json that carry them."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgeft.benchmarks.statistics.early_stop import SequentialTest
from edgeft.benchmarks.statistics.graded import MIN_ITEMS
from edgeft.benchmarks.statistics.noninferiority import Ground, Verdict, minimum_items
from edgeft.benchmarks.statistics.retention import Retention

NOT_IN_JSON = ("ground", "graded", "baseline_score")
"""fields of a Verdict that only its reason shows"""


def verdict_json(verdict: Verdict, reason: str) -> dict[str, Any]:
    """The object `verdict` of report.json (report/SCHEMA.md)."""
    fields = dataclasses.asdict(verdict)
    return {key: value for key, value in fields.items() if key not in NOT_IN_JSON} | {
        "reason": reason
    }


def retention_json(retention: Retention) -> dict[str, Any]:
    """The object `retention` of report.json."""
    fields = dataclasses.asdict(retention)
    return {"kept" if key == "retained" else key: value for key, value in fields.items()} | {
        "text": retention_text(retention)
    }


def verdict_reason(verdict: Verdict) -> str:
    """Why a verdict of one look is what it is, in a sentence."""
    if verdict.ground is Ground.NOTHING_TO_LOSE:
        return _nothing_to_lose(verdict.baseline_score, verdict.n, verdict.margin)
    return _graded_reason(verdict) if verdict.graded else _paired_reason(verdict)


def sequential_reason(verdict: Verdict, test: SequentialTest, item_count: int) -> str:
    """Why a verdict of `edgeft.release.sequential_gate` is what it is."""
    if verdict.ground is Ground.NOTHING_TO_LOSE:
        return _nothing_to_lose(verdict.baseline_score, test.items, verdict.margin)
    wealth = f"wealth {test.pass_wealth:.3g} for, {test.fail_wealth:.3g} against, 20 decides"
    if verdict.ground is Ground.UNDECIDED:
        return f"all {item_count} items leave it open ({wealth})."
    changed = f"{verdict.lost} lost and {verdict.won} won"
    return f"decided after {test.items} of {item_count} items ({changed}; {wealth})."


def retention_text(retention: Retention) -> str:
    if retention.value is None:
        return "no measurable fine-tune effect: the base answers as well"
    low, high = (
        f"{bound:.0%}" if bound is not None else "?" for bound in (retention.low, retention.high)
    )
    proven = "proven" if retention.retained else "not proven"
    return (
        f"{retention.value:.1%} of the gain is left ({low} to {high}); "
        f"at least {retention.rho:.0%}: {proven}"
    )


def _nothing_to_lose(score: float, n: int, margin: float) -> str:
    return (
        f"the baseline's score is only {100 * score:.4g} % on {n} items, which is no more than the "
        f"{_points(margin)} points allowed to be lost: check the items and the scorer."
    )


def _paired_reason(v: Verdict) -> str:
    assert v.lower is not None and v.upper is not None
    counts, change = f"{v.n} items, {v.lost} lost and {v.won} won", _change(v.difference)
    points, flips = _points(v.margin), f"{100 * v.flip_rate:.1f} %"
    if v.ground is Ground.WITHIN_MARGIN:
        worst = f"at most {-100 * v.lower:.2f} points worse" if v.lower < 0 else "no worse"
        return (
            f"{counts}: the candidate {change} and, with 95 % confidence, is {worst}, "
            f"inside the {points} points allowed."
        )
    if v.ground is Ground.BEYOND_MARGIN:
        return (
            f"{counts}: the candidate {change}, {points} points or more, and chance does not "
            f"explain it (mid-p {v.mid_p:.2g}, at best {100 * v.upper:+.2f} points)."
        )
    if v.ground is Ground.TOO_FEW_ITEMS:
        return (
            f"cannot certify {points} points with {v.n} items: even without a single changed "
            f"answer {minimum_items(v.margin)} are needed, and at your flip rate of {flips} "
            f"about {v.items_needed} ({v.lost} lost and {v.won} won so far)."
        )
    return (
        f"{counts}: the candidate {change} but could be {-100 * v.lower:.2f} points worse, "
        f"beyond the {points} points allowed, and it needs about {v.items_needed} items at your "
        f"flip rate of {flips}."
    )


def _graded_reason(v: Verdict) -> str:
    assert v.lower is not None
    figures = (
        f"{v.n} items, mean score {100 * v.difference:+.2f} points "
        f"(95 %: {100 * v.lower:+.2f} or more)"
    )
    points = _points(v.margin)
    if v.ground is Ground.TOO_FEW_ITEMS:
        return f"{figures}: fewer than {MIN_ITEMS} items decide nothing for graded scores."
    if v.ground is Ground.WITHIN_MARGIN:
        return f"{figures}, inside the {points} points allowed."
    if v.ground is Ground.BEYOND_MARGIN:
        return f"{figures}: beyond the {points} points allowed (p {v.mid_p:.2g})."
    return f"{figures}, beyond the {points} points allowed: about {v.items_needed} items decide."


def _points(fraction: float) -> str:
    return f"{100 * fraction:.4g}"


def _change(difference: float) -> str:
    if difference == 0.0:
        return "scores the same"
    direction = "gained" if difference > 0 else "lost"
    return f"{direction} {abs(100 * difference):.2f} points"
