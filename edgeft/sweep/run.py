"""Sweep options -> trials, the table of them, and the winner by validation.

    space = {"learning_rate": (1e-4, 2e-4, 5e-4), "lora_r": (8, 16)}
    result = sweep(SweepOptions(run=values, space=space, output=Path("out")))
    result.best.values, result.adapter                  # out/best

The same call goes on where an interrupted one stopped: no complete or pruned trial runs again. The test
split of a task is never read.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft import files, store
from edgeft.benchmarks.quality.training_items import training_items, validation_of
from edgeft.errors import InputError, StaleError
from edgeft.progress import say
from edgeft.report.sweep_page import NAMES, write_page
from edgeft.sweep import space
from edgeft.sweep.options import Range, SweepOptions
from edgeft.sweep.study import Study
from edgeft.sweep.trial import (
    Call,
    Outcome,
    Trial,
    folder_of,
    read_trials,
    remove_result,
    write_trial,
)
from edgeft.sweep.workers import Workers, open_workers
from edgeft.train.protocol import Evaluation
from edgeft.train.resolve import TrainRun

SCHEMA = 1
JSON, PAGE, BEST = "sweep.json", "sweep.html", "best"
Watcher = Callable[[Sequence[Trial]], None]
"""called with all trials after each change; what it raises ends the sweep, which can be continued"""


@dataclass(frozen=True)
class SweepResult:
    """What a sweep came to."""

    output: Path
    measure: str
    trials: tuple[Trial, ...]
    """by number"""
    best: Trial | None
    """None while no trial is complete"""
    adapter: Path | None
    """link to the winner's result: an adapter, or a model where the method trains all of it"""
    command: str
    """`edgeft train …` of the winner"""

    def ranked(self) -> list[Trial]:
        """Complete trials from the best on, then the others by number."""
        return sorted(self.trials, key=lambda trial: _rank(trial, self.measure == "loss"))

    def to_json(self) -> dict[str, Any]:
        return {
            "output": str(self.output),
            "measure": self.measure,
            "best": self.best.to_json() if self.best else None,
            "adapter": str(self.adapter) if self.adapter else None,
            "command": self.command,
            "trials": [trial.to_json() for trial in self.ranked()],
        }


def sweep(options: SweepOptions, watch: Watcher | None = None) -> SweepResult:
    """Run the trials that are not there yet.

    Raises InputError for what a training would refuse, before the first trial, and where no trial is
    complete at the end; StaleError where the output holds something else; MissingExtra without Optuna.
    """
    if options.items:
        options = dataclasses.replace(options, items=validation_of(options.items))
        training_items(options.items)  # type: ignore[arg-type]
    options = dataclasses.replace(options, output=options.output.expanduser().resolve())
    Study(options, ())  # MissingExtra comes before any work
    request = _request(options, space.check(options))
    _check_folder(options.output)
    with files.claimed(options.output):
        options.output.mkdir(exist_ok=True)
        _open_folder(options, request)
        running = Sweep(options, request, watch)
        with open_workers(options.ray) as workers:
            running.run(workers)
    return running.result()


def _request(options: SweepOptions, parents: dict[str, str]) -> dict[str, Any]:
    """What must be the same for a sweep that goes on."""
    names = ("seed", "measure", "pruner", "reduction_factor")
    request = {
        "run": {name: space.plain(value) for name, value in options.run.items()},
        "space": {
            name: values.to_json() if isinstance(values, Range) else list(map(space.plain, values))
            for name, values in options.space.items()
        },
        "items": dataclasses.asdict(options.items) if options.items else None,
        "sampler": "grid" if options.is_grid else options.sampler.replace("auto", "tpe"),
        **{name: getattr(options, name) for name in names},
        "parents": parents,
    }
    return dict(json.loads(json.dumps(request, default=str)))


def _check_folder(output: Path) -> None:
    """StaleError for a folder of something else."""
    empty = not output.exists() or (output.is_dir() and not any(output.iterdir()))
    if not empty and not (output / JSON).is_file():
        raise StaleError(f"{output} was not made by this command", "choose another output")


def _open_folder(options: SweepOptions, request: dict[str, Any]) -> None:
    """Begin the sweep, or go on with it; StaleError where the folder holds another one."""
    output = options.output
    before = files.read_json(output / JSON).get("request", {})
    changed = list(_changed(before, request)) if before else []
    if changed and not options.overwrite:
        raise StaleError(
            f"{output} holds a sweep with another {', '.join(changed)}",
            "--overwrite, or choose another output",
        )
    if before and options.overwrite:
        for name in (JSON, PAGE, BEST, "trials"):  # first what says that it is a sweep's
            path = output / name
            path.unlink() if path.is_symlink() else files.remove(path)
    if not (output / JSON).is_file():
        files.write_text(output / JSON, json.dumps({"schema": SCHEMA, "request": request}) + "\n")


def _changed(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """Names of the options and paths that differ."""
    for name in sorted({*before, *now}):
        one, other = before.get(name), now.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _changed(one, other)
        elif one != other:
            yield name.replace("_", "-")


class Sweep:
    """The trials of one output folder while they run."""

    def __init__(
        self, options: SweepOptions, request: dict[str, Any], watch: Watcher | None = None
    ) -> None:
        self.options, self.request, self.watch = options, request, watch
        self.trials = {trial.number: trial for trial in read_trials(options.output)}
        self._forget_lost_winner()
        self.study = Study(options, list(self.trials.values()))
        self._waiting = [
            t.number for t in self.trials.values() if t.status in ("running", "failed")
        ]
        self._tidy()

    def run(self, workers: Workers) -> None:
        """Run all trials. What interrupts this leaves a state that a next call goes on from."""
        running = 0
        jobs = (
            self.study.total() if self.options.ray and self.options.jobs == 1 else self.options.jobs
        )
        while True:
            while running < jobs and (trial := self._next(jobs)):
                workers.start(self._call(trial))
                running += 1
            if not running:
                break
            number, message = workers.wait()
            if isinstance(message, Evaluation):
                workers.answer(number, self._goes_on(number, message))
            else:
                self._end(number, message)
                running -= 1
        self._save()

    def result(self) -> SweepResult:
        """InputError where no trial is complete."""
        result = self._result()
        if not result.best:
            errors = [trial.error for trial in self.trials.values() if trial.error]
            why = f": {errors[0]}" if errors else ""
            raise InputError(f"no trial is complete{why}", f"{self.options.output}/trials/*.log")
        return result

    def _next(self, jobs: int) -> Trial | None:
        """An interrupted trial, or one with new values; its record is written."""
        if self._waiting:
            number = self._waiting.pop(0)
            before = self.trials[number]
            trial = Trial(number, before.values, threads=before.threads)
        else:
            number = max(self.trials, default=-1) + 1
            values = self.study.propose(number) if len(self.trials) < self.study.total() else None
            if values is None:
                return None
            trial = Trial(number, values, threads=self._threads(jobs))
        self.study.begin(number, trial.values)
        self._change(trial)
        say(f"trial {number} of {self.study.total()}: {space.named(trial.values)}")
        return trial

    def _threads(self, jobs: int) -> str:
        chosen = str(self.options.run.get("threads", "all"))
        cores = len(os.sched_getaffinity(0))
        return str(max(1, cores // jobs)) if jobs > 1 and chosen == "all" else chosen

    def _train_run(self, trial: Trial) -> TrainRun:
        run = space.resolve(
            self.options, trial.values, folder_of(self.options.output, trial.number)
        )
        if "threads" in trial.values:
            return run
        return dataclasses.replace(
            run, options=dataclasses.replace(run.options, threads=trial.threads)
        )

    def _call(self, trial: Trial) -> Call:
        return Call(trial.number, self._train_run(trial), self.options.items, self.options.measure)

    def _goes_on(self, number: int, evaluation: Evaluation) -> bool:
        trial = self.trials[number]
        name = f"{NAMES[evaluation.measure]} {evaluation.value:.4g} at step {evaluation.step}"
        say(f"trial {number}: {name}")
        if not math.isfinite(evaluation.value):
            self.trials[number] = dataclasses.replace(trial, error=name)
            return False
        points = dict(trial.curve) | {evaluation.step: evaluation.value}
        trial = dataclasses.replace(trial, curve=tuple(sorted(points.items())))
        goes_on = self.study.goes_on(number, trial.curve)
        stages = self.study.stages(number)
        self._change(dataclasses.replace(trial, stages=stages), write=False)
        return goes_on or evaluation.last

    def _end(self, number: int, outcome: Outcome) -> None:
        trial = self.trials[number]
        trial = dataclasses.replace(
            trial,
            status=outcome.status,
            curve=outcome.curve if outcome.status == "complete" else trial.curve,
            error=outcome.error or trial.error,
        )
        if outcome.status == "complete":
            step, score = _kept(outcome)
            trial = dataclasses.replace(trial, score=score, score_step=step)
        self.study.end(trial)
        self._change(trial)
        ending = f"complete, {trial.score:.4g}" if trial.score is not None else trial.status
        say(f"trial {number}: {ending}{': ' * bool(trial.error)}{trial.error}")
        self._tidy()
        self._save()

    def _change(self, trial: Trial, write: bool = True) -> None:
        self.trials[trial.number] = trial
        if write:
            write_trial(self.options.output, trial)
        if self.watch:
            self.watch(tuple(self.trials.values()))

    def _best(self) -> Trial | None:
        complete = [trial for trial in self.trials.values() if trial.status == "complete"]
        lower = self.options.lower_is_better
        return min(complete, key=lambda trial: _rank(trial, lower), default=None)

    def _forget_lost_winner(self) -> None:
        """A winner whose result is gone trains again."""
        output = self.options.output
        while (best := self._best()) and not store.read_manifest(folder_of(output, best.number)):
            remove_result(output, best.number)
            self.trials[best.number] = Trial(best.number, best.values, threads=best.threads)

    def _tidy(self) -> None:
        """Remove what no longer counts: results of pruned trials, and of all but the best."""
        best = self._best()
        for trial in self.trials.values():
            loses = trial.status == "complete" and trial is not best and self.options.keep == "best"
            if trial.status == "pruned" or loses:
                remove_result(self.options.output, trial.number)
            elif trial.status == "failed":
                files.sweep_target(folder_of(self.options.output, trial.number))

    def _result(self) -> SweepResult:
        best, output = self._best(), self.options.output
        trials = tuple(self.trials[number] for number in sorted(self.trials))
        command = self._train_run(best).command(*_items_words(self.options)) if best else ""
        link = output / BEST if best else None
        return SweepResult(output, self.options.measure, trials, best, link, command)

    def _save(self) -> None:
        """Write table and page, and link the winner."""
        result = self._result()
        raw = {"schema": SCHEMA, "request": self.request, **result.to_json()}
        files.write_text(self.options.output / JSON, json.dumps(raw, indent=1) + "\n")
        write_page(raw, self.options.output / PAGE)
        if result.best:
            link = self.options.output / BEST
            temp = files.partial_path(link)
            temp.unlink(missing_ok=True)
            temp.symlink_to(f"trials/{folder_of(link.parent, result.best.number).name}")
            os.replace(temp, link)


def _rank(trial: Trial, lower_is_better: bool) -> tuple[bool, float, int]:
    score = trial.score or 0.0
    return trial.status != "complete", score if lower_is_better else -score, trial.number


def _kept(outcome: Outcome) -> tuple[int, float]:
    """(step, measure) of the weights that were kept: the last evaluation's, or the best one's."""
    points = dict(outcome.curve)
    step = outcome.kept_step if outcome.kept_step in points else outcome.curve[-1][0]
    return step, points[step]


def _items_words(options: SweepOptions) -> list[str]:
    items = options.items
    if not items:
        return []
    words = {"items": items.items, "scorer": items.scorer, "limit": items.limit}
    return [
        text for name, value in words.items() if value for text in (f"--eval-{name}", str(value))
    ]
