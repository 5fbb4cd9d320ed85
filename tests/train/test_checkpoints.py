"""Which checkpoint a run goes on from: the newest that is whole, and not the one of the last step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgeft.errors import StaleError
from edgeft.train import checkpoints

pytestmark = pytest.mark.unit
REQUEST: dict[str, dict[str, Any]] = {"options": {"steps": 6}, "parents": {"base": "ab"}}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Checkpoints of steps 2, 4 and, the last one, 6."""
    work = tmp_path / "adapter.work"
    checkpoints.open_work_folder(work, REQUEST, None)
    for step in (2, 4, 6):
        folder = work / f"checkpoint-{step}"
        (folder / "more").mkdir(parents=True)
        (folder / "more" / "weights").write_text("abc")
        control = {"args": {"should_training_stop": step == 6}}
        state = {"stateful_callbacks": {"TrainerControl": control}, "train_batch_size": 3}
        (folder / checkpoints.STATE_FILE).write_text(json.dumps(state))
        checkpoints.flush(folder)
    return work


def newest(work: Path) -> str | None:
    path = checkpoints.resumable(work, REQUEST, resume=True, overwrite=False)
    return path and path.name


def test_the_last_step_is_done_again_from_the_checkpoint_before(work: Path) -> None:
    assert newest(work) == "checkpoint-4"
    assert checkpoints.micro_batch_size(work / "checkpoint-4") == 3


@pytest.mark.parametrize("damage", ["shorter", "missing", "unmarked", "no mark"])
def test_a_checkpoint_that_is_not_whole_does_not_count(work: Path, damage: str) -> None:
    weights, mark = (
        work / "checkpoint-4" / name for name in ("more/weights", checkpoints.WHOLE_FILE)
    )
    if damage == "shorter":
        weights.write_text("")
    elif damage == "missing":
        weights.unlink()
    elif damage == "unmarked":
        mark.unlink()
    else:
        mark.write_text("{}")
    assert newest(work) == "checkpoint-2"


def test_an_interrupted_run_is_gone_on_with_or_begun_anew_only_where_asked(work: Path) -> None:
    with pytest.raises(StaleError, match="checkpoint-4 is left from an interrupted run"):
        checkpoints.resumable(work, REQUEST, resume=False, overwrite=False)
    assert checkpoints.resumable(work, REQUEST, resume=False, overwrite=True) is None
    other = {**REQUEST, "options": {"steps": 7}}
    with pytest.raises(StaleError, match="cannot resume: steps changed"):
        checkpoints.resumable(work, other, resume=True, overwrite=False)
    checkpoints.remove_finished(work, other)
    assert work.is_dir(), "another run's checkpoints"
    checkpoints.remove_finished(work, REQUEST)
    assert not work.exists()


def test_checkpoints_whose_removal_was_cut_off_are_removed_later(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.shutil, "rmtree", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            checkpoints.remove_finished(work, REQUEST)
        assert (work / checkpoints.REQUEST_FILE).is_file(), "whose they are"
    monkeypatch.undo()
    (work / checkpoints.REQUEST_FILE).unlink()
    for path in work.iterdir():
        checkpoints.files.remove(path)
    checkpoints.remove_finished(work, REQUEST)
    assert not work.exists(), "an empty folder is nobody's"
