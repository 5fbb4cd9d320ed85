"""Measured candidates -> verdicts, and from all of them the decision what to ship."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeft.benchmarks.statistics.graded import judge_graded
from edgeft.benchmarks.statistics.noninferiority import (
    Outcome,
    Paired,
    Verdict,
    judge,
    worst_outcome,
)
from edgeft.benchmarks.statistics.retention import Retention, measure_retention
from edgeft.records import Score
from edgeft.release import wording
from edgeft.release.measure import MeasuredCandidate
from edgeft.release.prepare import GateRun
from edgeft.release.refusals import RefusalVerdict, judge_refusals
from edgeft.release.sequential_gate import judge_sequential

RIGHT_OR_WRONG = frozenset({0.0, 1.0})


@dataclass(frozen=True)
class JudgedCandidate:
    name: str
    measured: MeasuredCandidate
    verdict: Verdict
    """on the items"""
    reason: str
    """of `verdict`, a sentence"""
    refusals: RefusalVerdict | None
    retention: Retention | None

    @property
    def outcome(self) -> Outcome:
        """On the items and on refusals: both must pass."""
        refusals = self.refusals.outcome if self.refusals else "PASS"
        return worst_outcome([self.verdict.outcome, refusals])


@dataclass(frozen=True)
class Decision:
    outcome: Outcome
    ship: str | None
    """name of the candidate to ship"""
    reason: str


def judge_candidate(
    run: GateRun, measured: MeasuredCandidate, base: Score | None
) -> JudgedCandidate:
    """`base`: the better of the base's scores, if it was measured."""
    verdict = judge_scores(measured.baseline.values, measured.score.values, run.margin)
    if measured.sequential is None:
        reason = wording.verdict_reason(verdict)
    else:
        count = len(run.items.examples)
        verdict = judge_sequential(measured.sequential, verdict, count)
        reason = wording.sequential_reason(verdict, measured.sequential.test, count)
    return JudgedCandidate(
        run.names[measured.path], measured, verdict, reason,
        judge_refusals(measured.refusals) if measured.refusals else None,
        _judge_retention(measured, base, run.options.keeps) if base else None,
    )  # fmt: skip


def judge_scores(before: Sequence[float], after: Sequence[float], margin: float) -> Verdict:
    """Tango's test for scores of right and wrong, the bootstrap for scores between them."""
    if RIGHT_OR_WRONG >= {*before, *after}:
        return judge(Paired.count(before, after), margin)
    return judge_graded(before, after, margin)


def decide(judged: Sequence[JudgedCandidate]) -> Decision:
    """Ship the smallest candidate that passed; if none did, give the first one's reason.

    `judged` is ordered from large to small and ends with the first candidate that did not pass.
    """
    passed = [candidate for candidate in judged if candidate.outcome == "PASS"]
    last = judged[-1]
    if not passed:
        by_refusals = last.verdict.outcome == "PASS" and last.refusals
        return Decision(last.outcome, None, by_refusals.reason if by_refusals else last.reason)
    shipped = passed[-1]
    reason = shipped.reason
    if last is not shipped:
        reason += f" {last.name}, the next smaller one, is {last.outcome}."
    return Decision("PASS", shipped.name, reason)


def _judge_retention(measured: MeasuredCandidate, base: Score, rho: float) -> Retention | None:
    """None for graded scores, which the test cannot take."""
    before, after = measured.baseline.values, measured.score.values
    if not RIGHT_OR_WRONG >= {*base.values, *before, *after}:
        return None
    return measure_retention(base.values[: len(after)], before, after, rho)
