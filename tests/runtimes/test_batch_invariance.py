"""Batch invariance on made-up kernels: no model, no llama.cpp."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgeft.runtimes.batch_invariance import PROBED_SEQUENCES, BatchInvariance, probe

pytestmark = pytest.mark.unit


def same_kernel(rows: int) -> str:
    return "any"


def float16_kernel(rows: int) -> str:
    return "one row" if rows == 1 else "several"


def k_quant_kernel(rows: int) -> str:
    return "few" if rows < 8 else "many"


def both_kernels(rows: int) -> str:
    return float16_kernel(rows) + k_quant_kernel(rows)


def every_count(rows: int) -> str:
    return str(rows)


def decoder(kernel: Callable[[int], str], count: int) -> Callable[[BatchInvariance], Any]:
    """Sequences whose logits depend on the kernel that the number of rows chooses."""

    def decode(invariance: BatchInvariance) -> Any:
        logits = []
        for begin in range(0, count, invariance.max_batch):
            numbers = list(range(begin, min(begin + invariance.max_batch, count)))
            padding = invariance.padding(numbers, lambda number: 0 <= number < count)
            name = kernel(len(numbers) + len(padding))
            logits += [(number, hash((name, number))) for number in numbers]
        return np.array(logits)

    return decode


@pytest.mark.parametrize(
    ("kernel", "count", "expected"),
    [
        (same_kernel, 1, BatchInvariance(1, False)),
        (same_kernel, 5, BatchInvariance(5, False)),
        (same_kernel, 64, BatchInvariance(64, False)),
        (float16_kernel, 1, BatchInvariance(1, False)),
        (float16_kernel, 5, BatchInvariance(5, True)),
        (float16_kernel, 64, BatchInvariance(64, True)),
        (k_quant_kernel, 7, BatchInvariance(7, False)),
        (k_quant_kernel, 8, BatchInvariance(7, False)),
        (k_quant_kernel, 64, BatchInvariance(7, False)),
        (both_kernels, 4, BatchInvariance(4, True)),
        (both_kernels, 64, BatchInvariance(7, True)),
        (every_count, 64, BatchInvariance(2, True)),
    ],
)
def test_probe_finds_the_largest_batch_that_changes_no_bit(
    kernel: Any, count: int, expected: BatchInvariance
) -> None:
    assert probe(decoder(kernel, min(count, PROBED_SEQUENCES)), count, can_pad=True) == expected


def test_probe_without_padding_decodes_one_at_a_time_where_two_differ() -> None:
    assert probe(decoder(float16_kernel, 5), 5, can_pad=False) == BatchInvariance(1, False)
    assert probe(decoder(k_quant_kernel, 9), 9, can_pad=False) == BatchInvariance(7, False)


def always(number: int) -> bool:
    return 0 <= number < 8


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([0], []),
        ([0, 1, 2], []),
        ([0, 2], [1]),
        ([1, 3, 5], [2, 4]),
        ([0, 3], []),
        ([0, 2, 5], [1]),
        ([4, 4, 4], []),
        ([], []),
    ],
)
def test_gaps_of_one_are_padded(numbers: list[int], expected: list[int]) -> None:
    assert BatchInvariance(8).padding(numbers, always) == expected


def test_gaps_are_not_padded_beyond_the_largest_batch() -> None:
    assert BatchInvariance(5).padding([1, 3, 5], always) == [2, 4]
    assert BatchInvariance(4).padding([1, 3, 5], always) == []


def test_gaps_of_full_sequences_are_not_padded() -> None:
    assert BatchInvariance(8).padding([0, 2, 4], lambda number: number != 1) == [3]


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([0], [1]),
        ([7], [6]),
        ([3], [4]),
        ([3, 4], []),
        ([0, 2], [1]),
        ([0, 3], [1, 4]),
        ([0, 1, 5], [6]),
    ],
)
def test_a_single_token_is_padded_by_a_neighbour(numbers: list[int], expected: list[int]) -> None:
    assert BatchInvariance(8, pad_single_token=True).padding(numbers, always) == expected


def test_a_single_token_without_a_free_neighbour_stays_alone() -> None:
    invariance = BatchInvariance(8, pad_single_token=True)
    assert invariance.padding([3], lambda number: number == 2) == [2]
    assert invariance.padding([3], lambda number: False) == []
