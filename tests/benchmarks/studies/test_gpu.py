"""Losses of two devices are compared step by step."""

from __future__ import annotations

import pytest

from edgeft.benchmarks.studies.gpu import largest_difference
from edgeft.benchmarks.studies.training_methods import Row

pytestmark = pytest.mark.unit


def row(method: str, device: str, *losses: float) -> Row:
    curve = [[float(step), loss] for step, loss in enumerate(losses, 1)]
    return Row(method, device, 1.0, losses[-1], 0.5, 100.0, None, 1.0, curve)


def test_the_largest_difference_of_a_step_counts() -> None:
    rows = [row("lora", "cpu", 3.0, 2.0), row("lora", "cuda", 3.1, 1.5), row("full", "cpu", 1.0)]
    assert largest_difference(rows) == {"lora": pytest.approx(0.5)}
