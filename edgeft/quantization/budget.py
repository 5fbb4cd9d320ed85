"""Types that each tensor may have, with bytes and error + a number of bytes -> one type for each tensor.

    types = assign({"blk.0.attn_q.weight": [Choice("q4_0", 186_624, .02), Choice("q8_0", 352_512, .0001)]}, budget)

Every tensor starts with its smallest type. Then the step with the largest fall of the error per byte is
taken, as long as it fits. Types above the lower convex hull of (bytes, error) are never taken: this is the
greedy solution of the multiple-choice knapsack problem (Sinha and Zoltners, Operations Research 27:503,
1979), which is within one step of the optimum.

`assign_shifted` also takes shifts in a direction that all tensors share, which cost the square of their sum.
At the optimum a shift s costs 2 S s at the margin, S the sum. So errors + w s are assigned for weights w, and the
one that is twice its sum is searched for.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from edgeft.errors import ResourceError
from edgeft.files import format_bytes


@dataclass(frozen=True)
class Choice:
    """One type of one tensor."""

    type: str
    size: int
    """bytes"""
    error: float
    """what it costs; the errors of tensors add up"""
    shift: float = 0.0
    """in the shared direction, at least 0; the square of the sum over the tensors is a cost, too"""


WEIGHT_STEPS = 24
"""halvings of the range of the weight of a shift"""


def assign_shifted(
    choices: Mapping[str, Sequence[Choice]], budget: int, fixed: int = 0
) -> dict[str, Choice]:
    """As `assign`, with the least sum of errors plus square of the sum of shifts that is found."""

    def assigned(weight: float) -> tuple[float, float, dict[str, Choice]]:
        weighted = {
            name: [
                replace(choice, error=choice.error + weight * choice.shift) for choice in options
            ]
            for name, options in choices.items()
        }
        taken = assign(weighted, budget, fixed)
        own = {
            name: {choice.type: choice for choice in choices[name]}[taken[name].type]
            for name in taken
        }
        shift = sum(choice.shift for choice in own.values())
        return sum(choice.error for choice in own.values()) + shift**2, shift, own

    low, high = (
        0.0,
        2 * sum(max(choice.shift for choice in options) for options in choices.values()),
    )
    best = assigned(high)
    for _ in range(WEIGHT_STEPS if high else 0):
        middle = (low + high) / 2
        tried = assigned(middle)
        best = min(best, tried, key=lambda of: of[0])
        low, high = (middle, high) if 2 * tried[1] > middle else (low, middle)
    return best[2]


def assign(
    choices: Mapping[str, Sequence[Choice]], budget: int, fixed: int = 0
) -> dict[str, Choice]:
    """One choice for each tensor, of `budget` bytes in all at most, `fixed` bytes of others included.

    ResourceError where the smallest choices are larger.
    """
    hulls = {name: hull(options) for name, options in choices.items()}
    taken = dict.fromkeys(hulls, 0)
    left = budget - fixed - sum(steps[0].size for steps in hulls.values())
    if left < 0:
        raise ResourceError(
            f"the smallest types make {format_bytes(budget - left)}, not {format_bytes(budget)}",
            "a larger --max-size",
        )
    queue = [(-_slope(steps, 0), name) for name, steps in hulls.items() if len(steps) > 1]
    heapq.heapify(queue)
    while queue:
        _, name = heapq.heappop(queue)
        steps, at = hulls[name], taken[name]
        more = steps[at + 1].size - steps[at].size
        if more > left:
            continue  # smaller steps of other tensors may still fit
        left -= more
        taken[name] = at + 1
        if at + 2 < len(steps):
            heapq.heappush(queue, (-_slope(steps, at + 1), name))
    return {name: hulls[name][at] for name, at in taken.items()}


def hull(options: Sequence[Choice]) -> list[Choice]:
    """The choices on the lower convex hull, from the smallest to the one with the least error."""
    steps: list[Choice] = []
    for choice in sorted(options, key=lambda choice: (choice.size, choice.error)):
        if steps and choice.error >= steps[-1].error:
            continue
        while len(steps) > 1 and _slope([steps[-2], steps[-1]], 0) <= _slope(
            [steps[-1], choice], 0
        ):
            steps.pop()
        steps.append(choice)
    return steps


def _slope(steps: Sequence[Choice], at: int) -> float:
    """The fall of the error per byte of the step after `at`."""
    before, after = steps[at], steps[at + 1]
    return (before.error - after.error) / (after.size - before.size)
