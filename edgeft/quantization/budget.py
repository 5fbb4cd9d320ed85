"""Types that each tensor may have, with bytes and error + a number of bytes -> one type for each tensor.

    types = assign({"blk.0.attn_q.weight": [Choice("q4_0", 186_624, .02), Choice("q8_0", 352_512, .0001)]}, budget)

Every tensor starts with its smallest type. Then the step with the largest fall of the error per byte is
taken, as long as it fits. Types above the lower convex hull of (bytes, error) are never taken: this is the
greedy solution of the multiple-choice knapsack problem (Sinha and Zoltners, Operations Research 27:503,
1979), which is within one step of the optimum.

`assign_shifted` also takes shifts in directions that all tensors share, which cost the square of their sum S.
At the optimum a shift s costs 2 S s at the margin. So errors + 2 w s are assigned for the mean w of the sums so
far (Frank and Wolfe, Naval Research Logistics Quarterly 3:95, 1956). The best of these is taken, and improved
as long as another type of one or two tensors makes it better.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

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
    shift: tuple[float, ...] = ()
    """in shared directions; the square of the sum over the tensors is a cost, too"""


SHIFT_STEPS = 64
"""assignments that are tried for shifts"""
NEAREST, IMPROVEMENTS = 2, 200
"""types on either side of the present one that a tensor may change to, and changes at most"""


def assign_shifted(
    choices: Mapping[str, Sequence[Choice]], budget: int, fixed: int = 0
) -> dict[str, Choice]:
    """As `assign`, with the least sum of errors plus square of the sum of shifts that is found."""

    shifts = {
        name: np.array([choice.shift for choice in options]) for name, options in choices.items()
    }
    weight: Any = 0.0
    best: tuple[float, dict[str, Choice]] | None = None
    for step in range(SHIFT_STEPS):
        weighted = {
            name: [
                replace(choice, error=choice.error + float(margin))
                for choice, margin in zip(options, (2 * shifts[name] * weight).sum(1), strict=True)
            ]
            for name, options in choices.items()
        }
        taken = {
            name: next(choice for choice in choices[name] if choice.type == one.type)
            for name, one in assign(weighted, budget, fixed).items()
        }
        cost = total_cost(taken.values())
        if best is None or cost < best[0]:
            best = cost, taken
        summed = np.sum([choice.shift for choice in taken.values()], axis=0)
        if step and np.array_equal(summed, weight):
            break
        weight = weight + (summed - weight) * 2 / (step + 2)
    return {} if best is None else _improved(choices, best[1], budget - fixed)


def _improved(
    choices: Mapping[str, Sequence[Choice]], taken: dict[str, Choice], room: int
) -> dict[str, Choice]:
    """The result of the best changes of one or two types, one after the other; `room`: bytes for all."""
    if not any(any(choice.shift) for options in choices.values() for choice in options):
        return taken
    for _ in range(IMPROVEMENTS):
        summed = np.sum([choice.shift for choice in taken.values()], axis=0)
        left = room - sum(choice.size for choice in taken.values())
        moves: list[tuple[str, Choice]] = [("", next(iter(taken.values())))]  # stands for none
        for name, now in taken.items():
            sizes = sorted(choices[name], key=lambda choice: choice.size)
            at = sizes.index(now)
            near = sizes[max(0, at - NEAREST) : at + NEAREST + 1]
            moves += [(name, choice) for choice in near if choice != now]
        before = [taken.get(name, choice) for name, choice in moves]
        after = [choice for _, choice in moves]
        shift = np.array([a.shift for a in after]) - np.array([b.shift for b in before])
        more = np.array([a.size - b.size for a, b in zip(after, before, strict=True)])
        gain = np.array([a.error - b.error for a, b in zip(after, before, strict=True)])
        gain += 2 * shift @ summed + np.square(shift).sum(1)
        pairs = gain[:, None] + gain + 2 * shift @ shift.T
        tensors = np.unique([name for name, _ in moves], return_inverse=True)[1]
        pairs[(tensors[:, None] == tensors) | (more[:, None] + more > left)] = 0
        first, second = np.unravel_index(pairs.argmin(), pairs.shape)
        if pairs[first, second] > -1e-9:
            break
        taken = taken | {name: choice for name, choice in (moves[first], moves[second]) if name}
    return taken


def total_cost(chosen: Iterable[Choice]) -> float:
    """The sum of the errors, and the square of the sum of the shifts."""
    taken = list(chosen)
    shift = np.sum([choice.shift for choice in taken], axis=0)
    return sum(choice.error for choice in taken) + float(np.square(shift).sum())


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
