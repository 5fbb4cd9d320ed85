"""A target that another run writes, a full or a read-only disk, a folder that goes away: one line each."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgeft import files, store
from helpers.faults import STAGES, Place

Placed = Callable[[str], Place]
TARGETS = {
    "gguf over": "out/q8_0.gguf", "hf": "out/hf-f32", "imatrix": "out/q4_0.gguf", "clean": "clean.jsonl",
    "split": "split", "mix over": "mix.jsonl", "train": "adapter", "gptq": "out/gptq-4bit",
    "onnx": "out/onnx-int4",
}  # fmt: skip
"""stage -> what it locks"""


def some(fast: tuple[str, ...], names: object = STAGES) -> list[object]:
    """The stages as parameters; those that are not in `fast` are slow."""
    return [pytest.param(name, marks=() if name in fast else pytest.mark.slow) for name in names]  # type: ignore[attr-defined]


def refused(stage: Place, says: str, **more: object) -> None:
    """The command ends with one line and changes nothing; without its cause it completes."""
    code, _, output = stage.server.run(stage.command, stage.folder, **more)
    errors = [line for line in output.splitlines() if "edgeft: error: " in line]
    assert code == 1 and len(errors) == 1 and says in errors[0], output
    assert "Traceback" not in output


@pytest.mark.parametrize("name", some(("gguf over", "clean"), TARGETS))
def test_the_second_of_two_runs_is_refused_in_one_line(place: Placed, name: str) -> None:
    stage = place(name)
    stage.clean()
    target = stage.folder / TARGETS[name]
    with files.claimed(target):
        refused(stage, f"another run is writing {target} (wait until it ends")
    assert list(stage.problems_of_next_run()) == []


@pytest.mark.parametrize("name", some(("hf over",)))
def test_a_file_that_may_not_grow_is_a_full_disk(place: Placed, name: str) -> None:
    stage = place(name)
    largest = max(len(data) for data in stage.after.values())
    stage.clean()
    refused(stage, "", limits={"RLIMIT_FSIZE": largest // 2})
    assert list(stage.problems_of_next_run()) == []


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A small file system in memory on a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
    if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("clean", "size=4k", "No space left on device"),
        ("clean", "ro", "Read-only file system"),
        pytest.param("gguf", "size=32k", "is free", marks=pytest.mark.slow),
        pytest.param(
            "gguf", "ro", "cannot be written to (choose another --out)", marks=pytest.mark.slow
        ),
    ],
)
def test_a_full_disk_and_a_read_only_one(place: Placed, name: str, options: str, says: str) -> None:
    stage = place(name)
    shutil.rmtree(stage.folder)
    with mounted(stage.folder, options):
        refused(stage, says)
    assert list(stage.problems_of_next_run()) == []


@pytest.mark.unit
@pytest.mark.parametrize("name", ["model.gguf", "model"])
def test_a_folder_that_goes_away_is_an_error_of_the_system(tmp_path: Path, name: str) -> None:
    target = tmp_path / "out" / name
    with (
        pytest.raises(OSError, match="No such file"),
        store.writing(target, kind="artifact", options={}, parents={}),
    ):
        shutil.rmtree(target.parent)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.unit
def test_names_that_are_no_utf_8_are_written_and_read(tmp_path: Path) -> None:
    options = {"validation": os.fsdecode(b"v\xff.jsonl")}
    for name in (b"m\xff.gguf", b"m\xff"):
        target = tmp_path / os.fsdecode(name)
        with store.writing(target, kind="artifact", options=options, parents={}) as draft:
            part = draft.path / os.fsdecode(b"p\xff") if draft.path.is_dir() else draft.path
            part.write_text("abc")
        manifest = store.find_complete(target, "artifact", options, {})
        assert manifest and store.damaged(target, manifest) == []
