"""One type for each tensor within a number of bytes, held to all combinations."""

from __future__ import annotations

import itertools
import random

import pytest

from edgeft.errors import ResourceError
from edgeft.quantization.budget import Choice, assign, assign_shifted, hull, total_cost

pytestmark = pytest.mark.unit


def best(choices: dict[str, list[Choice]], budget: int) -> float:
    """The smallest sum of errors of all combinations that fit."""
    return min(
        sum(choice.error for choice in combination)
        for combination in itertools.product(*choices.values())
        if sum(choice.size for choice in combination) <= budget
    )


def random_choices(seed: int) -> dict[str, list[Choice]]:
    """Errors fall as the square of the size, times a sensitivity that differs between tensors."""
    rng = random.Random(seed)
    return {
        f"t{i}": [
            Choice(f"q{bits}", 10 * bits, sensitivity * 4.0**-bits) for bits in (2, 3, 4, 5, 6, 8)
        ]
        for i, sensitivity in enumerate(rng.choices([1, 10, 100, 1000], k=5))
    }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("budget", [120, 150, 200, 250, 400])
def test_errors_are_near_the_best_of_all_combinations(seed: int, budget: int) -> None:
    choices = random_choices(seed)
    chosen = assign(choices, budget)
    assert sum(choice.size for choice in chosen.values()) <= budget
    error = sum(choice.error for choice in chosen.values())
    assert best(choices, budget) <= error <= best(choices, budget - 20) + 1e-12


def test_the_sensitive_tensor_gets_the_bits() -> None:
    sizes = {"q4": 4, "q8": 8}
    choices = {
        name: [Choice(kind, size, sensitivity / size) for kind, size in sizes.items()]
        for name, sensitivity in (("dull", 1.0), ("keen", 9.0))
    }
    types = {name: choice.type for name, choice in assign(choices, 12).items()}
    assert types == {"dull": "q4", "keen": "q8"}
    assert {choice.type for choice in assign(choices, 16).values()} == {"q8"}


def test_a_type_that_costs_more_and_is_worse_is_never_taken() -> None:
    choices = [
        Choice("a", 4, 1.0),
        Choice("worse", 5, 1.5),
        Choice("dent", 6, 0.9),
        Choice("b", 8, 0.1),
    ]
    assert [choice.type for choice in hull(choices)] == ["a", "b"]


def test_too_small_a_budget_is_refused() -> None:
    with pytest.raises(ResourceError, match="the smallest types make 25 B, not 24 B"):
        assign({"a": [Choice("q4", 20, 0.0)]}, 24, fixed=5)


@pytest.mark.parametrize("seed", range(4))
def test_shifts_cost_the_square_of_their_sum(seed: int) -> None:
    """q3 shifts, the others do not; held to all combinations."""
    rng = random.Random(seed)
    choices = {
        f"t{i}": [
            Choice("q2", 20, 16 * keen, (0.0, 0.0)), Choice("q3", 30, keen, shift),
            Choice("q5", 50, 0.1 * keen, (0.0, 0.0)),
        ]
        for i in range(5)
        for keen, shift in [(rng.uniform(0.5, 2), (rng.uniform(0, 2), rng.uniform(-1, 1)))]
    }  # fmt: skip

    for budget in (150, 200, 230):
        found = assign_shifted(choices, budget)
        assert sum(choice.size for choice in found.values()) <= budget
        fitting = [
            c for c in itertools.product(*choices.values()) if sum(x.size for x in c) <= budget
        ]
        assert total_cost(found.values()) <= total_cost(assign(choices, budget).values())
        within = [c for c in fitting if sum(x.size for x in c) <= budget - 20]
        assert (
            min(map(total_cost, fitting))
            <= total_cost(found.values())
            <= 1.1 * min(map(total_cost, within or fitting))
        )
