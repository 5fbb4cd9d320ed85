"""Measured candidates -> verdicts, and from all of them the decision what to ship."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeft.benchmarks.statistics.noninferiority import Outcome, Verdict, worst_outcome
from edgeft.benchmarks.statistics.retention import Retention, measure_retention
from edgeft.records import Score
from edgeft.release import wording
from edgeft.release.forgetting import Forgetting, judge_forgetting
from edgeft.release.measure import MeasuredCandidate
from edgeft.release.prepare import GateRun
from edgeft.release.refusals import RefusalVerdict, judge_refusals
from edgeft.release.scores import RIGHT_OR_WRONG, judge_scores
from edgeft.release.sequential_gate import judge_sequential


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
    forgetting: Forgetting | None

    @property
    def parts(self) -> list[tuple[Outcome, str]]:
        """(outcome, reason) of all that must pass: items, refusals, and what may be forgotten."""
        parts = [(self.verdict.outcome, self.reason)]
        if self.refusals:
            parts.append((self.refusals.outcome, self.refusals.reason))
        if self.forgetting and self.forgetting.bound is not None:
            parts.append((self.forgetting.verdict.outcome, self.forgetting.reason))
        return parts

    @property
    def outcome(self) -> Outcome:
        return worst_outcome(outcome for outcome, _ in self.parts)


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
        _judge_retention(measured, base, run.options.min_retention) if base else None,
        _judge_forgetting(measured, base, run.options.max_forgotten),
    )  # fmt: skip


def decide(judged: Sequence[JudgedCandidate]) -> Decision:
    """Ship the smallest candidate that passed; if none did, give the first one's reason.

    `judged` is ordered from large to small and ends with the first candidate that did not pass.
    """
    passed = [candidate for candidate in judged if candidate.outcome == "PASS"]
    last = judged[-1]
    if not passed:
        reason = next(reason for outcome, reason in last.parts if outcome == last.outcome)
        return Decision(last.outcome, None, reason)
    shipped = passed[-1]
    reason = shipped.reason
    if last is not shipped:
        reason += f" {last.name}, the next smaller one, is {last.outcome}."
    return Decision("PASS", shipped.name, reason)


def _judge_forgetting(
    measured: MeasuredCandidate, base: Score | None, bound: float | None
) -> Forgetting | None:
    """None where no general items were asked."""
    if measured.forgetting is None:
        return None
    gain = None
    if base:  # with early stopping, on the items up to the decision
        values = measured.score.values
        gain = measured.score.accuracy - sum(base.values[: len(values)]) / len(values)
    return judge_forgetting(measured.forgetting, gain, bound)


def _judge_retention(measured: MeasuredCandidate, base: Score, rho: float) -> Retention | None:
    """None for graded scores, which the test cannot take."""
    before, after = measured.baseline.values, measured.score.values
    if not RIGHT_OR_WRONG >= {*base.values, *before, *after}:
        return None
    return measure_retention(base.values[: len(after)], before, after, rho)
