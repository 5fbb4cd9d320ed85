"""A running training -> the number of CPU threads that is fastest on this machine at this moment.

Where other programs use the cores, two threads wait for each other at the end of every matrix product: they
fell to a tenth of their speed, and one thread kept it. Only a measurement knows.

The callback times the model's forward pass with all threads, with half of them and with one, in turns, at the
start and again when the steps take twice as long as the best ones did. With `--threads auto` it changes the
number. Otherwise it says what it measured: the number of threads decides in which order a sum is made,
so that another number gives other bytes.
"""

# Imported only when a run starts, after the check for the extra.
# ruff: noqa: TID253

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers

from edgeft.progress import say

PROBE_TOKENS, PROBE_ROUNDS = 64, 3
WINDOW_STEPS = 4
"""steps whose mean time is compared"""
PAUSE_STEPS = 40
"""steps between two measurements at least"""
SLOWER = 2.0
"""times as long as the best steps: reason to measure again"""
WORTH = 0.8
"""another number of threads must need at most this share of the present one's time"""


class ThreadsCallback(transformers.TrainerCallback):  # type: ignore[misc]
    """Measures, and changes torch's threads where `changes`; else it says what would be faster."""

    def __init__(self, changes: bool, clock: Callable[[], float] = time.perf_counter) -> None:
        self.changes, self.clock = changes, clock
        self.all_threads = torch.get_num_threads()
        self._times: list[float] = []
        self._best: float | None = None
        self._measured_at = 0
        self._started = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.changes:
            self._measure(kwargs["model"], state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.changes:
            torch.set_num_threads(self.all_threads)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._started = self.clock()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._times = [*self._times, self.clock() - self._started][-WINDOW_STEPS:]
        if len(self._times) < WINDOW_STEPS:
            return
        mean = statistics.fmean(self._times)
        self._best = min(self._best or mean, mean)
        paused = state.global_step - self._measured_at < PAUSE_STEPS and self._measured_at
        if mean > SLOWER * self._best and not paused:
            self._measure(kwargs["model"], state.global_step)

    def _measure(self, model: Any, step: int) -> None:
        self._measured_at, self._times = max(step, 1), []
        present = torch.get_num_threads()
        seconds = probe(
            model, sorted({1, max(1, self.all_threads // 2), self.all_threads}), self.clock
        )
        fastest = min(seconds, key=lambda threads: seconds[threads])
        if seconds[fastest] > WORTH * seconds.get(present, float("inf")):
            return
        times = seconds[present] / seconds[fastest]
        if self.changes:
            torch.set_num_threads(fastest)
            say(
                f"{_threads(fastest)} from here: {times:.1f} x as fast as {present} on this machine now"
            )
        else:
            say(f"this machine is busy: {_threads(fastest)} would be {times:.1f} x as fast as {present} "
                "now (--threads auto)")  # fmt: skip


def probe(
    model: Any, candidates: list[int], clock: Callable[[], float] = time.perf_counter
) -> dict[int, float]:
    """{threads: median seconds of a forward pass}, measured in turns; changes nothing else.

    Dropout is off meanwhile, so that no random number is drawn.
    """
    present, training = torch.get_num_threads(), model.training
    if len(candidates) < 2:
        return dict.fromkeys(candidates, 1.0)
    ids = torch.arange(PROBE_TOKENS)[None] % model.config.get_text_config().vocab_size
    seconds: dict[int, list[float]] = {threads: [] for threads in candidates}
    model.eval()
    try:
        with torch.no_grad():
            for _ in range(PROBE_ROUNDS):
                for threads in candidates:
                    torch.set_num_threads(threads)
                    model(input_ids=ids, use_cache=False, logits_to_keep=1)  # wakes the threads
                    started = clock()
                    model(input_ids=ids, use_cache=False, logits_to_keep=1)
                    seconds[threads].append(clock() - started)
    finally:
        torch.set_num_threads(present)
        model.train(training)
    return {threads: statistics.median(times) for threads, times in seconds.items()}


def _threads(count: int) -> str:
    return "one thread" if count == 1 else f"{count} threads"
