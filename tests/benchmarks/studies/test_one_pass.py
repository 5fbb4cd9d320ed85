"""The bench of the chain: its own arm runs, and what it counts is what there is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeft.benchmarks.studies import measured_process, one_pass, random_model
from edgeft.errors import InputError


def test_the_single_pass_is_measured(tmp_path: Path) -> None:
    random_model.make_model(tmp_path, random_model.SHAPES["qwen2-tiny"])
    found = one_pass.single(tmp_path, "q4_k_m", threads=1, live=False)
    assert found["seconds"] > 0 and found["anonymous"] > 1_000_000
    assert 100_000 < found["written"] < random_model.size(tmp_path / "base")
    assert found["read"] > 2 * random_model.size(tmp_path / "base")
    assert not (tmp_path / "edgeft").exists()
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    assert config["num_hidden_layers"] == 2


def test_a_step_that_fails_says_why() -> None:
    with pytest.raises(InputError, match="failed: .*no such thing"):
        measured_process.run(["python3", "-c", "import sys; sys.exit('no such thing')"])


def test_arms_alternate_and_the_median_counts() -> None:
    seconds = iter([3.0, 30.0, 1.0, 10.0, 2.0, 20.0])
    order = []

    def arm(name: str) -> dict[str, float]:
        order.append(name)
        return {"seconds": next(seconds), "anonymous": 1, "read": 1, "written": 1}

    found = one_pass.compare({"a": lambda: arm("a"), "b": lambda: arm("b")}, rounds=3)
    assert order == ["a", "b"] * 3
    assert (found["a"]["seconds"], found["a"]["spread"]) == (2.0, 2.0)
    assert found["b"]["seconds"] == 20.0
