"""The sum of the parts against the measured peak of a process."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from edgeft.benchmarks.studies import memory as study
from edgeft.train import memory
from edgeft.train.memory import Batch
from edgeft.train.options import TrainOptions


@pytest.mark.slow
def test_a_peak_of_a_process_is_predicted(
    tiny_base: Path, tiny_chats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)  # as in a process of users
    command = ["train-qlora", "--base", str(tiny_base), "--data",
               str(tiny_chats), "--output", str(tmp_path / "out"), "--steps", "2"]  # fmt: skip
    options = TrainOptions(tiny_base, tiny_chats, tmp_path)
    predicted = memory.estimate(
        memory.read_base(tiny_base), options, memory.LORA, Batch(8, 60, 120)
    )
    assert predicted.peak == pytest.approx(study.measured_peak(command), rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["plain", "checkpoint"])
@pytest.mark.parametrize("model", study.MODELS)
def test_peaks_of_larger_models_are_predicted(model: str, variant: str, tmp_path: Path) -> None:
    (row,) = study.peaks(tmp_path, [model], ["qlora"], [variant], micro_batch=4)
    assert row.ratio == pytest.approx(1, abs=0.15)


def test_files_count_only_where_they_are_mapped() -> None:
    """A file stays mapped while the model uses a tensor where it lies in the file."""
    parts = {"libraries": 5, "base": 40, "trained": 1, "gradients": 1, "optimizer": 2}
    small = memory.Memory(**parts, files=20, files_stay=False, activations=3, temporary=1)
    assert small.needed == 53 and small.peak == 65, "loading takes most"
    assert dataclasses.replace(small, activations=90).peak == 140
    assert dataclasses.replace(small, files_stay=True).peak == 73
