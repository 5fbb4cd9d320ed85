"""Every method on the embedded model and task: it learns, its export is the live model, and it answers."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from edgeft.benchmarks.studies.training_methods import measure
from edgeft.train.registry import METHODS


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_short_training_answers_the_task(method: str, tmp_path: Path) -> None:
    """The base answers none of the items without examples; its loss is 3.9."""
    options = Namespace(
        base="smollm2-135m", out=tmp_path, steps=30, batch_size=8, quant="q8_0", limit=60
    )
    row = measure(method, "cpu", options)
    assert row.validation_loss < 0.6
    assert row.accuracy > 0.1
