"""One trial: its record in `trials/007.json`, and its training, which reports every evaluation.

    outcome = train_trial(call, ask)        # in a process of its own

A record is written when a trial starts and when it ends. The result of a complete trial is
`trials/007`, with the manifest of any training.
"""

from __future__ import annotations

import dataclasses
import json
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgeft import files, store
from edgeft.benchmarks.options import EvalOptions
from edgeft.errors import EdgeftError, InputError
from edgeft.records import Manifest
from edgeft.sweep.space import Values
from edgeft.train.options import work_folder_of
from edgeft.train.protocol import Evaluation
from edgeft.train.resolve import TrainRun

Status = Literal["running", "complete", "pruned", "failed"]
Curve = tuple[tuple[int, float], ...]
"""(step, measure), in the order of the steps"""
CURVES = {"loss": ("validation_loss",), "accuracy": ("accuracy", "curve")}
"""measure -> where a training's manifest has its curve"""
Ask = Callable[[Evaluation], bool]
"""whether the trial goes on after this evaluation"""


@dataclass(frozen=True)
class Trial:
    """What is known of a trial."""

    number: int
    values: Values
    status: Status = "running"
    """running: also of a trial that was interrupted, which the next run ends"""
    curve: Curve = ()
    score: float | None = None
    """measure of the weights that were kept; None but for a complete trial"""
    score_step: int | None = None
    error: str = ""
    """why it failed"""
    threads: str = "all"
    stages: dict[str, float] = dataclasses.field(default_factory=dict)
    """the pruner's memory: stage that the trial reached -> measure there"""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Trial:
        curve = tuple((int(step), float(value)) for step, value in raw.pop("curve"))
        return cls(**raw, curve=curve)


@dataclass(frozen=True)
class Call:
    """What a worker process needs to run a trial."""

    number: int
    run: TrainRun
    items: EvalOptions | None
    measure: Literal["loss", "accuracy"]


@dataclass(frozen=True)
class Outcome:
    """How a trial ended."""

    status: Status
    curve: Curve = ()
    kept_step: int | None = None
    """step of the weights that --keep-best kept"""
    error: str = ""


class Pruned(Exception):
    """Ends a training from within."""


def folder_of(output: Path, number: int) -> Path:
    """The folder of a trial's result."""
    return output / "trials" / f"{number:03d}"


def read_trials(output: Path) -> list[Trial]:
    """The trials whose records are there, by number. InputError for a broken record."""
    trials = []
    for path in sorted((output / "trials").glob("*.json")):
        try:
            trials.append(Trial.from_json(files.read_json(path)))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is no trial: {error!r}", "delete it and run again") from None
    return sorted(trials, key=lambda trial: trial.number)


def write_trial(output: Path, trial: Trial) -> None:
    path = folder_of(output, trial.number).with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, json.dumps(trial.to_json()) + "\n")


def remove_result(output: Path, number: int) -> None:
    """Remove the result of a trial and what its training left beside it, but not record and log."""
    folder = folder_of(output, number)
    # Without its manifest, which goes first, a folder is no result.
    store.manifest_path(folder).unlink(missing_ok=True)
    for path in (folder, work_folder_of(folder)):
        files.remove(path)
    files.sweep_target(folder)


def train_trial(call: Call, ask: Ask) -> Outcome:
    """Train, from the last checkpoint where there is one.

    What this process prints from here on goes to `trials/NUMBER.log`. A training that fails is an Outcome,
    too; KeyboardInterrupt leaves the checkpoints.
    """
    from edgeft.benchmarks.quality.training_items import training_items
    from edgeft.train.run import train

    def watch(evaluation: Evaluation) -> None:
        if evaluation.measure == call.measure and not ask(evaluation):
            raise Pruned

    output, run = call.run.options.output, call.run
    _print_into(output.with_suffix(".log"))
    try:
        manifest = train(
            run.options,
            resume=work_folder_of(output).is_dir(),
            method=run.method,
            objective=run.objective,
            items=training_items(call.items) if call.items else None,
            watch=watch,
        )
    except Pruned:
        return Outcome("pruned")
    except EdgeftError as error:
        return Outcome("failed", error=str(error))
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()
        return Outcome("failed", error=repr(error))
    return complete_outcome(manifest, call.measure)


def complete_outcome(manifest: Manifest, measure: str) -> Outcome:
    """What the manifest of a trial's training says."""
    value: Any = manifest.facts
    for key in CURVES[measure]:
        value = value[key]
    curve = tuple((int(step), float(point)) for step, point in value)
    return Outcome("complete", curve, manifest.facts.get("kept_step"))


def _print_into(path: Path) -> None:
    """Send what this process prints from here on to the end of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as log:
        for number in (1, 2):
            os.dup2(log.fileno(), number)
