"""The folder of a run's checkpoints: what it was asked for, which are whole, which one to go on from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from edgeft import files
from edgeft.errors import StaleError
from edgeft.files import read_json
from edgeft.progress import say

REQUEST_FILE = "asked.json"
"""options and parents of an interrupted run, beside its checkpoints"""
WHOLE_FILE = "whole.json"
"""name -> bytes of the files of a checkpoint, written once they are on the disk"""
STATE_FILE = "trainer_state.json"
"""of transformers' Trainer"""
Request = dict[str, dict[str, Any]]


def flush(checkpoint: Path) -> None:
    """Bring a checkpoint to the disk and mark it as whole. The Trainer flushes nothing itself."""
    sizes = {}
    for path in sorted(checkpoint.rglob("*")):
        files.fsync(path)
        if path.is_file():
            sizes[str(path.relative_to(checkpoint))] = path.stat().st_size
    files.write_text(checkpoint / WHOLE_FILE, json.dumps(sizes))
    files.fsync(checkpoint.parent)


def resumable(
    work_folder: Path,
    request: Request,
    resume: bool,
    overwrite: bool,
    layout: dict[str, Any] | None = None,
) -> Path | None:
    """The newest checkpoint to go on from, None to start from the beginning; deletes nothing.

    `layout`: options that the run has in common with the readers of its checkpoints, {} for none.
    StaleError where an interrupted run left one and neither `resume` nor `overwrite` is on, and
    where the interrupted run had another request.
    """
    checkpoints = [path for path in work_folder.glob("checkpoint-*") if _goes_on(path)]
    if not checkpoints:
        if resume:
            say(f"no checkpoint in {work_folder}, starting from the beginning")
        return None
    newest = max(checkpoints, key=lambda path: int(path.name.rpartition("-")[2]))
    if not resume:
        if overwrite:
            return None
        raise StaleError(
            f"{newest} is left from an interrupted run",
            "--resume goes on from it, --overwrite starts over",
        )
    before = read_json(work_folder / REQUEST_FILE)
    changed = [
        key
        for part in ("options", "parents")
        for key, value in request[part].items()
        if before.get(part, {}).get(key) != value
    ]
    if changed:
        raise StaleError(
            f"cannot resume: {', '.join(changed)} changed since the interrupted run",
            "run with the same options, or start over with --overwrite",
        )
    if (written := before.get("layout", {})) != (layout or {}):
        words = " ".join(f"--{key} {value}" for key, value in written.items())
        raise StaleError(
            f"the checkpoints were written with {words or 'other --parallel'} and are read so alone",
            f"--resume {words}".strip() if words else "--parallel ddp or fsdp2",
        )
    return newest


def _goes_on(checkpoint: Path) -> bool:
    """Whether a checkpoint is whole and not the last one, from which the Trainer would do a step too many."""
    sizes = read_json(checkpoint / WHOLE_FILE)
    paths = {checkpoint / name: size for name, size in sizes.items()}
    if not sizes or any(not p.is_file() or p.stat().st_size != size for p, size in paths.items()):
        return False
    callbacks = read_json(checkpoint / STATE_FILE).get("stateful_callbacks", {})
    control = callbacks.get("TrainerControl", {}).get("args", {})
    return not control.get("should_training_stop")


def open_work_folder(
    work_folder: Path,
    request: Request,
    checkpoint: Path | None,
    layout: dict[str, Any] | None = None,
) -> None:
    """Make the folder of checkpoints; without one to go on from, delete what another run left."""
    if checkpoint is None and (work_folder / REQUEST_FILE).is_file():
        shutil.rmtree(work_folder)
    files.make_folder(work_folder)
    asked = request | ({"layout": layout} if layout else {})
    files.write_text(work_folder / REQUEST_FILE, json.dumps(asked, indent=1))


def remove_finished(work_folder: Path, request: Request) -> None:
    """Delete the checkpoints of a complete result, left where a run was killed after its last step."""
    asked = read_json(work_folder / REQUEST_FILE) if any(work_folder.iterdir()) else request
    if all(asked.get(part) == values for part, values in request.items()):
        remove_work_folder(work_folder)


def remove_work_folder(work_folder: Path) -> None:
    """Delete it, the file that says whose it is last: after a kill the next run still knows it."""
    for path in work_folder.iterdir():
        if path.name != REQUEST_FILE:
            files.remove(path)
    shutil.rmtree(work_folder)


def micro_batch_size(checkpoint: Path | None) -> int:
    """Examples of a micro-batch in the interrupted run, 0 where there is none."""
    state = read_json(checkpoint / STATE_FILE) if checkpoint else {}
    return int(state.get("train_batch_size") or 0)
