"""Every method on the embedded model and task: it learns, its export is the live model, and it answers."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from edgeft.benchmarks.studies.training_methods import measure
from edgeft.train.registry import METHODS

LEAST_ACCURACY = dict.fromkeys(METHODS, 0.3)
"""method -> share of 100 test items after 40 steps of 8; the base answers none without examples"""


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_short_training_answers_the_task(method: str, tmp_path: Path) -> None:
    options = Namespace(
        base="smollm2-135m", out=tmp_path, steps=40, batch_size=8, quant="q8_0", limit=100
    )
    row = measure(method, "cpu", options)
    assert row.validation_loss < row.losses[0][1] / 4
    assert row.accuracy >= LEAST_ACCURACY[method]
