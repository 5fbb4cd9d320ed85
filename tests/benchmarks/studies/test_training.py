"""The study of training's speed runs on a tiny model."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from edgeft.benchmarks.studies import training


@pytest.mark.slow
def test_the_arms_have_one_loss_curve(tiny_base: Path, tiny_chats: Path) -> None:
    options = argparse.Namespace(
        base=str(tiny_base), data=str(tiny_chats), steps=3, rounds=1, batch_size=4, threads=1,
        cpu_time=True,
    )  # fmt: skip
    results = training.measure(["edgeft", "edgeft-plain", "peft"], options)
    for arm in results.values():
        assert arm["tokens_per_second"] > 0 and arm["memory"] > 1_000_000
        assert arm["losses"] == pytest.approx(results["peft"]["losses"], rel=1e-2)


def test_the_first_step_is_not_timed() -> None:
    result = {"seconds": [9.0, 1.0, 1.0], "tokens": [10, 20, 40], "losses": [3.0, 2.0, 1.0]}
    assert training.rate(result) == 30
    other = result | {"seconds": [1.0, 1.0, 0.5]}
    summary = training.summary([result | {"memory": 5}, other | {"memory": 7}])
    assert summary == {
        "tokens_per_second": 35.0, "range": [30.0, 40.0], "memory": 7, "losses": [3.0, 2.0, 1.0],
    }  # fmt: skip
