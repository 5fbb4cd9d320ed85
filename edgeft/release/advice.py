"""What bases scored without a fine-tune, and a target -> prompt, few-shot or fine-tune, with reasons.

    advice = advise(attempts, target=0.9)
    advice.word, advice.base                # "fine-tune", "smollm2-135m"

Pure: it asks no model. The scores decide, and the intervals say how sure that is: a score that reaches the
target decides against a fine-tune even where its interval begins below, because a fine-tune costs more
than asking more rows. `proven` is then False, and a reason names the number of rows that would do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgeft.benchmarks.quality.fewshot import FewShot
from edgeft.benchmarks.statistics.noninferiority import ALPHA, Paired, mid_p, wilson

Word = Literal["prompt", "few-shot", "fine-tune"]
MAX_ROWS = 1_000_000
"""rows above which none are recommended: the score is too near the target"""


@dataclass(frozen=True)
class Attempt:
    """One base, asked in one way."""

    base: str
    """its name"""
    few_shot: FewShot
    size: int
    """bytes of the base as it was asked"""
    values: tuple[float, ...]
    """score of each item, from 0 to 1"""
    interval: tuple[float, float]
    """of the accuracy, at 95 %"""
    prompt_tokens: float
    """of an item on average, examples and instructions included"""
    seconds: float
    """of an item on average, many at a time, without loading the model"""
    stopped: float
    """share of the answers that the model ended itself"""

    @property
    def accuracy(self) -> float:
        return sum(self.values) / len(self.values)

    def gap(self, target: float) -> float:
        """Target minus accuracy: above 0 where the target is missed."""
        return target - self.accuracy

    def to_json(self) -> dict[str, Any]:
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del fields["values"]
        return fields | {
            "few_shot": dataclasses.asdict(self.few_shot),
            "n": len(self.values),
            "accuracy": self.accuracy,
        }


@dataclass(frozen=True)
class Advice:
    """What to do next."""

    word: Word
    base: str
    """to prompt, or to fine-tune"""
    attempt: Attempt
    """that decided: the cheapest that reaches the target, else the best of that base"""
    proven: bool
    """whether the interval of the decision lies on one side of the target"""
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "word": self.word, "base": self.base, "proven": self.proven,
            "attempt": self.attempt.to_json(), "reasons": list(self.reasons),
        }  # fmt: skip


def advise(attempts: Sequence[Attempt], target: float) -> Advice:
    """All attempts are on the same items, in the same order; ValueError where there is none.

    Of the attempts that reach the target, those without examples come first, then the smallest base,
    then the shortest prompt. Where none does, the base with the best attempt is fine-tuned, or a
    smaller one that is not measurably worse.
    """
    if not attempts:
        raise ValueError("no attempt to judge")
    reached = [attempt for attempt in attempts if attempt.accuracy >= target]
    if not reached:
        return _fine_tune(attempts, target)
    without = [attempt for attempt in reached if not attempt.few_shot.shots]
    best = min(without or reached, key=lambda a: (a.size, a.prompt_tokens, -a.accuracy))
    reasons = [f"{_named(best)} scores {_share(best)}, the target is {target:.1%}."]
    proven = best.interval[0] >= target
    if not proven:
        reasons.append(_more_rows(best, target))
    if not without:
        reasons.append(_example_cost(best, attempts))
    return Advice("prompt" if without else "few-shot", best.base, best, proven, tuple(reasons))


def _fine_tune(attempts: Sequence[Attempt], target: float) -> Advice:
    by_base: dict[str, Attempt] = {}
    for attempt in sorted(attempts, key=lambda a: (-a.accuracy, a.prompt_tokens)):
        by_base.setdefault(attempt.base, attempt)
    leader, *others = by_base.values()
    equals = [leader, *(other for other in others if not _worse(other, leader))]
    chosen = min(equals, key=lambda attempt: attempt.size)
    points = f"{100 * leader.gap(target):.1f} points below the target of {target:.1%}"
    reasons = [f"the best attempt, {_named(leader)}, scores {_share(leader)}: {points}."]
    proven = all(attempt.interval[1] < target for attempt in attempts)
    if not proven:
        reasons.append("an interval reaches the target, so more rows could still show it reached.")
    reasons += _effect_of_examples(chosen, attempts)
    if len(by_base) > 1:
        reasons.append(_choice_of_base(chosen, leader))
    return Advice("fine-tune", chosen.base, chosen, proven, tuple(reasons))


def _worse(attempt: Attempt, leader: Attempt) -> bool:
    """Whether chance does not explain the difference (mid-p McNemar, an item right from .5 on)."""
    right = [[value >= 0.5 for value in one.values] for one in (leader, attempt)]
    return mid_p(Paired.count(*right)) < ALPHA


def _choice_of_base(chosen: Attempt, leader: Attempt) -> str:
    if chosen is not leader:
        return (
            f"{chosen.base} is smaller than {leader.base} and not measurably worse "
            f"({chosen.accuracy:.1%} against {leader.accuracy:.1%} on {len(chosen.values)} rows)."
        )
    return (
        f"{chosen.base} scores best of the bases as they are; what training adds may differ, and "
        "only a short training of each tells."
    )


def _effect_of_examples(chosen: Attempt, attempts: Sequence[Attempt]) -> list[str]:
    """What examples in the prompt changed for this base, where both ways were tried."""
    of_base = [attempt for attempt in attempts if attempt.base == chosen.base]
    plain = [attempt for attempt in of_base if not attempt.few_shot.shots]
    shown = [attempt for attempt in of_base if attempt.few_shot.shots]
    if not (plain and shown):
        return []
    best = max(shown, key=lambda attempt: attempt.accuracy)
    gain = 100 * (best.accuracy - plain[0].accuracy)
    tokens = best.prompt_tokens - plain[0].prompt_tokens
    return [
        (
            f"examples in the prompt ({best.few_shot}) change the score of {chosen.base} by "
            f"{gain:+.1f} points and cost {tokens:.0f} tokens of each prompt."
        )
    ]


def _example_cost(best: Attempt, attempts: Sequence[Attempt]) -> str:
    plain = [a for a in attempts if a.base == best.base and not a.few_shot.shots]
    if not plain:
        return f"each prompt has {best.prompt_tokens:.0f} tokens."
    extra = best.prompt_tokens - plain[0].prompt_tokens
    return (
        f"its examples cost {extra:.0f} tokens of each prompt, {best.prompt_tokens:.0f} in place of "
        f"{plain[0].prompt_tokens:.0f}; a fine-tune would save them."
    )


def _more_rows(attempt: Attempt, target: float) -> str:
    needed = rows_needed(attempt.accuracy, target)
    low = f"with 95 % confidence only {attempt.interval[0]:.1%} are certain"
    if needed is None:
        return f"{low}, and the score is too near the target for more rows to show it."
    return f"{low}; at this score about {needed} rows would show the target reached."


def rows_needed(accuracy: float, target: float) -> int | None:
    """Rows from which Wilson's interval of this accuracy begins at the target; None above MAX_ROWS."""

    def shows(rows: int) -> bool:
        return wilson(accuracy * rows, rows)[0] >= target

    if not shows(MAX_ROWS):
        return None
    low, high = 0, MAX_ROWS
    while high - low > 1:
        middle = (low + high) // 2
        if shows(middle):
            high = middle
        else:
            low = middle
    return high


def _named(attempt: Attempt) -> str:
    few_shot = attempt.few_shot
    how = f"with examples ({few_shot})" if few_shot.shots else "with instructions only"
    return f"{attempt.base} {how}"


def _share(attempt: Attempt) -> str:
    low, high = attempt.interval
    rows = len(attempt.values)
    return f"{attempt.accuracy:.1%} on {rows} rows (95 %: {low:.1%} to {high:.1%})"
