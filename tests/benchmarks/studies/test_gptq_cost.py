"""The study of GPTQ's cost runs on a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeft.benchmarks.studies import gptq_cost, random_model


@pytest.mark.slow
def test_blocks_are_timed(tmp_path: Path) -> None:
    random_model.make_model(tmp_path, random_model.SHAPES["qwen2-tiny"])
    cost = gptq_cost.cost(tmp_path / "base", tokens=256, threads=1)
    assert cost["block"] > 0 and cost["anonymous"] > 1_000_000
    assert cost["operations"] > 4 * 256 * cost["weights"]
