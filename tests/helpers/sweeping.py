"""Trials without a training: workers whose curves follow from the values of a trial."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeft import store
from edgeft.sweep.options import SweepOptions
from edgeft.sweep.trial import Call, Outcome, complete_outcome
from edgeft.sweep.workers import Message
from edgeft.train.options import TrainOptions
from edgeft.train.protocol import Evaluation

EVALUATIONS = 4
STEPS = 10
"""between two evaluations"""
Curve = Callable[[TrainOptions], list[float]]
"""options of a trial -> its measure at each evaluation"""


def flat(options: TrainOptions) -> list[float]:
    """A loss that is best at a learning rate of 1e-3 and the largest rank, and falls alike for all."""
    distance = abs(options.learning_rate - 1e-3) * 1e3
    return [3 + distance - options.lora_r / 100 - i / 10 for i in range(EVALUATIONS)]


class FakeWorkers:
    """Runs trials in turns, an evaluation at a time; `close` forgets those that run."""

    def __init__(self, curve: Curve = flat) -> None:
        self.curve = curve
        self.started: list[Call] = []
        self.most_at_a_time = 0
        self.errors: dict[int, str] = {}
        """number of a trial -> how it fails at once"""
        self.kept_step: int | None = None
        self._running: dict[int, tuple[Call, list[float]]] = {}
        self._stopped: set[int] = set()

    def start(self, call: Call) -> None:
        self.started.append(call)
        self._stopped.discard(call.number)
        self._running[call.number] = (call, self.curve(call.run.options))
        self.most_at_a_time = max(self.most_at_a_time, len(self._running))

    def wait(self) -> tuple[int, Message]:
        number, (call, left) = next(iter(self._running.items()))
        if number in self.errors:
            del self._running[number]
            return number, Outcome("failed", error=self.errors[number])
        if number in self._stopped:
            del self._running[number]
            return number, Outcome("pruned")
        if left:
            self._running[number] = self._running.pop(number)[0], left[1:]
            step = STEPS * (len(self.curve(call.run.options)) - len(left) + 1)
            return number, Evaluation(call.measure, step, left[0], last=len(left) == 1)
        del self._running[number]
        return number, self._complete(call)

    def answer(self, number: int, goes_on: bool) -> None:
        if not goes_on:
            self._stopped.add(number)

    def close(self) -> None:
        self._running.clear()

    def _complete(self, call: Call) -> Outcome:
        points = [[STEPS * i, v] for i, v in enumerate(self.curve(call.run.options), 1)]
        facts: dict[str, Any] = {"validation_loss": points, "accuracy": {"curve": points}}
        if self.kept_step:
            facts["kept_step"] = self.kept_step
        output = call.run.options.output
        with store.writing(output, kind="adapter", options={}, parents={}) as draft:
            (draft.path / "adapter_model.safetensors").write_bytes(b"weights")
            draft.facts |= facts
        manifest = store.read_manifest(output)
        assert manifest
        return complete_outcome(manifest, call.measure)


def sweep_options(base: Path, data: Path, output: Path, **changes: Any) -> SweepOptions:
    """Three learning rates by two ranks on 8 validation examples."""
    run = {"method": "lora", "objective": "sft", "base": str(base), "data": data, "batch_size": 4,
           "validation_size": 8, "steps": STEPS * EVALUATIONS} | changes.pop("run", {})  # fmt: skip
    space = {"learning_rate": (1e-4, 1e-3, 5e-3), "lora_r": (4, 8)}
    return dataclasses.replace(SweepOptions(run, space, output), **changes)
