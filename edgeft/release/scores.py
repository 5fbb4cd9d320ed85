"""Scores of one or two models on the same items -> a verdict, an interval, and both per tag.

judge_scores(before.values, after.values, margin=0.05).outcome
slices(examples, before, after)                 # per task where the tags name tasks
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from edgeft.benchmarks.statistics.graded import judge_graded
from edgeft.benchmarks.statistics.noninferiority import Paired, Verdict, judge, wilson
from edgeft.records import Example, Score

RIGHT_OR_WRONG = frozenset({0.0, 1.0})


def judge_scores(before: Sequence[float], after: Sequence[float], margin: float) -> Verdict:
    """Tango's test for scores of right and wrong, the bootstrap for scores between them."""
    if RIGHT_OR_WRONG >= {*before, *after}:
        return judge(Paired.count(before, after), margin)
    return judge_graded(before, after, margin)


def score_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval: Wilson's for a share of right answers, the normal one for graded scores."""
    if RIGHT_OR_WRONG >= set(values):
        return wilson(int(sum(values)), len(values))
    mean = statistics.mean(values)
    half = 1.96 * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 1.0
    return max(0.0, mean - half), min(1.0, mean + half)


def slices(
    examples: Sequence[Example], before: Score, after: Score, base: Score | None = None
) -> tuple[dict[str, Any], ...]:
    """Scores per tag, the most frequent tag first. `base`: the model before the fine-tune, if asked."""
    numbers: dict[str, list[int]] = {}
    for i, example in enumerate(examples):
        for tag in example.tags:
            numbers.setdefault(tag, []).append(i)
    found = []
    for tag, tagged in sorted(numbers.items(), key=lambda pair: (-len(pair[1]), pair[0])):
        old, new = ([score.values[i] for i in tagged] for score in (before, after))
        found.append({
            "tag": tag, "n": len(tagged), "accuracy": statistics.mean(new),
            "interval": score_interval(new), "baseline": statistics.mean(old),
            "base": statistics.mean(base.values[i] for i in tagged) if base else None,
            "lost": sum(b < a for a, b in zip(old, new, strict=True)),
            "won": sum(b > a for a, b in zip(old, new, strict=True)),
        })  # fmt: skip
    return tuple(found)
