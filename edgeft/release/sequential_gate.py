"""A candidate and the baseline, some items at a time -> both scores, up to the item that decides.

The decision is that of `edgeft.benchmarks.statistics.early_stop.SequentialTest`: PASS, FAIL, or
INCONCLUSIVE where all items were answered without a decision.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft import files
from edgeft.benchmarks.quality import evaluate
from edgeft.benchmarks.statistics.early_stop import SequentialTest
from edgeft.benchmarks.statistics.noninferiority import Ground, Verdict, has_nothing_to_lose
from edgeft.records import Score
from edgeft.release.prepare import GateRun

ITEMS_PER_LOOK = 32
"""items answered by both models between two looks at the test"""


@dataclass(frozen=True)
class SequentialScores:
    """Scores of both models on the items up to the decision."""

    baseline: Score
    candidate: Score
    test: SequentialTest


def answer_until_decided(run: GateRun, candidate: Path) -> SequentialScores:
    """Answer by turns, `ITEMS_PER_LOOK` items each, until the test decides or no item is left."""
    test = SequentialTest(run.margin)
    before: list[Score] = []
    after: list[Score] = []
    count = len(run.items.examples)
    for start in range(0, count, ITEMS_PER_LOOK):
        part = run.items.part(range(start, min(start + ITEMS_PER_LOOK, count)))
        before.append(evaluate.measure(run.options.baseline, part, run.eval_options))
        after.append(evaluate.measure(candidate, part, run.eval_options))
        for pair in zip(before[-1].values, after[-1].values, strict=True):
            test.update(*pair)
        if test.outcome:
            break
    return SequentialScores(_joined(before), _joined(after), test)


def judge_sequential(scores: SequentialScores, one_look: Verdict, item_count: int) -> Verdict:
    """The test's decision with the figures of `one_look`, the verdict of a test of one look.

    The bounds are left out, because they do not hold after many looks. `item_count`: all items,
    answered or not.
    """
    outcome = scores.test.outcome
    if outcome is None:
        needed = one_look.items_needed or 2 * item_count
        return _without_bounds(one_look, Ground.UNDECIDED, needed)
    score = statistics.mean(scores.baseline.values)
    if outcome == "PASS" and has_nothing_to_lose(score, one_look.margin, one_look.lower or 0.0):
        return _without_bounds(one_look, Ground.NOTHING_TO_LOSE, None)
    ground = Ground.WITHIN_MARGIN if outcome == "PASS" else Ground.BEYOND_MARGIN
    return _without_bounds(one_look, ground, None)


def _without_bounds(verdict: Verdict, ground: Ground, items_needed: int | None) -> Verdict:
    return dataclasses.replace(
        verdict, outcome=ground.outcome, ground=ground, items_needed=items_needed,
        lower=None, upper=None,
    )  # fmt: skip


def _joined(parts: Sequence[Score]) -> Score:
    """Scores on consecutive parts of the items as one score."""

    def concatenated(name: str) -> Any:
        return tuple(value for part in parts for value in getattr(part, name))

    return dataclasses.replace(
        parts[0], items=files.text_sha256("".join(part.items for part in parts)),
        replies=concatenated("replies"), values=concatenated("values"),
        stopped=concatenated("stopped"), prompt_tokens=concatenated("prompt_tokens"),
        seconds=sum(part.seconds for part in parts),
    )  # fmt: skip
