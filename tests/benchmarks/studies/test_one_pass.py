"""The study of the export runs edgeft's arm on a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeft.benchmarks.studies import one_pass, random_model

pytestmark = pytest.mark.unit


def test_edgeft_arm_is_measured(tmp_path: Path) -> None:
    random_model.make_model(tmp_path, random_model.SHAPES["qwen2-tiny"])
    result = one_pass.run_edgeft(tmp_path, "q4_k_m", threads=1, live=False)
    assert result["seconds"] > 0 and result["anonymous"] > 1_000_000
    assert 100_000 < result["written"] < random_model.size(tmp_path / "base")
    assert result["read"] > 2 * random_model.size(tmp_path / "base")
    assert not (tmp_path / "edgeft").exists()
