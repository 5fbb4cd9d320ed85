"""Scores of a base and its fine-tune on general items -> what the fine-tune forgot, and a verdict on it.

Accuracy on the task does not show what else was lost. So the base and each candidate are asked the same
general items, and the loss is a paired difference with the bounds of the release gate. With a bound on
the loss it is one of the parts of the verdict that must pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgeft.benchmarks.options import EvalOptions
from edgeft.benchmarks.quality import evaluate
from edgeft.benchmarks.quality.evaluate import Items
from edgeft.benchmarks.statistics.noninferiority import Verdict, default_margin
from edgeft.errors import InputError
from edgeft.records import Example, Score
from edgeft.release.options import GateOptions
from edgeft.release.scores import judge_scores, score_interval, slices
from edgeft.release.wording import verdict_json, verdict_reason

SUITE = "general"
"""embedded suite that is asked where the user names no other items"""


@dataclass(frozen=True)
class ForgettingScores:
    """Scores on the general items, all in the same order."""

    examples: Sequence[Example]
    base: Score
    """the model before the fine-tune"""
    baseline: Score
    """the fine-tune that the candidate is compared with, such as its f16"""
    candidate: Score


@dataclass(frozen=True)
class Forgetting:
    """What a candidate lost of what its base could do."""

    scores: ForgettingScores
    verdict: Verdict
    """of the candidate against the base, held to the bound, or else to the default margin"""
    bound: float | None
    """acceptable loss, as a share; None = the loss is reported and decides nothing"""
    gain: float | None
    """on the task: accuracy of the candidate minus the better one of the base; None = not measured"""
    reason: str


def load_general(options: GateOptions, eval_options: EvalOptions) -> Items | None:
    """The general items, if they are asked for; InputError without the base that they need."""
    if options.general is None:
        if options.max_forgotten is not None or options.general_scorer:
            raise InputError("there are no general items to hold the candidates to", "--general")
        return None
    if options.base is None:
        raise InputError("what was forgotten is told by the model before the fine-tune", "--base")
    return evaluate.load_items(
        dataclasses.replace(
            eval_options, items=options.general, scorer=options.general_scorer, limit=None,
            max_tokens=None, few_shot_data=None,
        )
    )  # fmt: skip


def judge_forgetting(
    scores: ForgettingScores, gain: float | None, bound: float | None = None
) -> Forgetting:
    """A paired test of the candidate against the base: at most `bound` lost?"""
    before, after = scores.base.values, scores.candidate.values
    margin = default_margin(len(before)) if bound is None else bound
    verdict = judge_scores(before, after, margin)
    if bound is None:
        reason = _change(verdict)
    else:
        reason = f"general items: {verdict_reason(verdict)}"
    return Forgetting(scores, verdict, bound, gain, reason)


def forgetting_json(forgetting: Forgetting) -> dict[str, Any]:
    """One arm of `forgetting` in report.json: the verdict's outcome is there with a bound only."""
    scores = forgetting.scores
    verdict = verdict_json(forgetting.verdict, forgetting.reason)
    names = ("lost", "won", "difference", "lower", "upper", "mid_p", "reason")
    return {
        "accuracy": scores.candidate.accuracy,
        "interval": score_interval(scores.candidate.values),
        "outcome": verdict["outcome"] if forgetting.bound is not None else None,
        **{name: verdict[name] for name in names},
        "gain": forgetting.gain,
        "slices": slices(scores.examples, scores.base, scores.candidate),
    }


def _change(verdict: Verdict) -> str:
    """A sentence without a judgement."""
    assert verdict.lower is not None and verdict.upper is not None
    return (
        f"{verdict.n} general items, {verdict.lost} lost and {verdict.won} won: "
        f"{100 * verdict.difference:+.1f} points (bounds {100 * verdict.lower:+.1f} and "
        f"{100 * verdict.upper:+.1f})."
    )
