"""The fuzzing of readers: every target reads its valid files, and a defect is counted and kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from edgeft.benchmarks.studies import fuzz
from edgeft.benchmarks.studies.fuzz_targets import targets
from edgeft.errors import InputError

COUNT = int(os.environ.get("MUTANTS", "60")) // 4
"""damaged files for each target"""


@pytest.fixture(scope="module")
def all_targets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    pytest.importorskip("onnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEFT_HOME", str(tmp_path_factory.mktemp("home")))
        yield targets(tmp_path_factory.mktemp("fuzz"))


def test_no_damaged_file_is_a_defect(all_targets: dict[str, Any], tmp_path: Path) -> None:
    assert len(all_targets) >= 24
    for name, target in all_targets.items():
        for seed in target.seeds:
            target.read(seed)
        tally = fuzz.Tally(name, tmp_path / "defects")
        for data in islice(fuzz.inputs(target, seed=7), COUNT):
            tally.run(target.read, data)
        assert not tally.defects, (name, tally.defects)
        assert tally.inputs == COUNT


def test_a_defect_is_counted_and_its_input_kept(tmp_path: Path) -> None:
    def read(data: bytes) -> None:
        if data == b"refused":
            raise InputError("no")
        if data == b"defect":
            raise KeyError("x")

    tally = fuzz.Tally("any", tmp_path / "defects")
    assert [tally.run(read, data) for data in (b"whole", b"refused", b"defect")] == [
        True,
        False,
        False,
    ]
    assert list(tally.defects.values()) == [1] and "KeyError" in next(iter(tally.defects))
    assert [path.read_bytes() for path in (tmp_path / "defects").iterdir()] == [b"defect"]
