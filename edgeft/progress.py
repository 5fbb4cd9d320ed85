"""Notes and progress on stderr: a bar on a terminal, plain lines elsewhere, JSON lines for programs.

    with Progress("train-qlora", total=110) as bar:
        bar.update(1, units=380, loss=0.42)     # units: tokens, for the rate

stdout is left to results. docs/studio.md describes the JSON lines, which `write_json_lines` turns on.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from edgeft.printable import one_printable_line

if TYPE_CHECKING:
    import rich.console
    import rich.progress

LINE_INTERVAL_S = 10.0
"""seconds between two plain lines, where stderr is no terminal"""
BAR_INTERVAL_S = 0.1
"""seconds between two drawings of the bar"""


_json_lines = False


def write_json_lines(on: bool) -> None:
    """Whether notes, progress and errors of this process are JSON lines on stderr."""
    global _json_lines
    _json_lines = on


def writes_json_lines() -> bool:
    """Whether `write_json_lines` is on."""
    return _json_lines


def emit(event: str, **facts: Any) -> bool:
    """Write one JSON line, {"event": …, "time": seconds since 1970, …}; False where they are not on."""
    if _json_lines:
        line = json.dumps({"event": event, "time": round(time.time(), 3), **facts}, default=str)
        print(line, file=sys.stderr, flush=True)
    return _json_lines


def say(text: str) -> None:
    """Print a note for the user; it may have several lines."""
    if not emit("note", text=text):
        lines = map(one_printable_line, text.split("\n"))
        print("edgeft:", "\n".join(lines), file=sys.stderr, flush=True)


@functools.cache
def say_once(text: str) -> None:
    """Print a note for the user, the first time that it comes up in this process."""
    say(text)


def dumb_terminal() -> bool:
    """Whether the terminal understands no control codes."""
    return os.environ.get("TERM", "dumb") in ("dumb", "unknown", "")


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hide the advice that torch and the Hugging Face libraries print for developers."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    names = ("bitsandbytes", "huggingface_hub", "peft", "transformers")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class Progress:
    """Shows steps done of `total`, the last values, tokens per second, and the time left.

    It is drawn within `update` only: no thread takes time from what is measured.
    """

    def __init__(self, title: str, total: int, short: bool = False) -> None:
        """`short`: print no plain line for work that takes less than `LINE_INTERVAL_S`."""
        self.title = title
        self.total = total
        self.short = short
        self.done = 0
        """steps"""
        self.units = 0
        """tokens"""
        self._first_step = 0
        self._started = time.perf_counter()
        self._last_shown = 0.0
        self._values: dict[str, float] = {}
        self._bar: rich.progress.Progress | None = None

    def start_at(self, done: int) -> None:
        """Begin at step `done`: a resumed run spends no time on the steps before it."""
        self.done = self._first_step = done

    def update(self, done: int, units: int = 0, **values: float) -> None:
        """Count `done` further steps and `units` further tokens; `values` replace those shown."""
        self.done += done
        self.units += units
        self._values.update(values)
        now = time.perf_counter()
        if _json_lines:
            self._emit(now, values)
            return
        interval = BAR_INTERVAL_S if self._bar else LINE_INTERVAL_S
        finished = self.done == self.total and (self._bar is not None or not self.short)
        if now - self._last_shown >= interval or finished:
            self._last_shown = now
            self._show()

    def _show(self) -> None:
        if self._bar is None:
            say(self._text())
        else:
            (task,) = self._bar.task_ids
            self._bar.update(task, completed=self.done, description=self._text(), refresh=True)

    def _emit(self, now: float, values: dict[str, float]) -> None:
        """One JSON line; updates without values and without the end are left out in between."""
        if now - self._last_shown < BAR_INTERVAL_S and not values and self.done != self.total:
            return
        self._last_shown = now
        elapsed, left = self._times()
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        emit(
            "progress", title=self.title, done=self.done, total=self.total, tokens=self.units,
            elapsed_s=round(elapsed, 3), left_s=round(left, 3), values=finite,
        )  # fmt: skip

    def _times(self) -> tuple[float, float]:
        """Seconds since the start, and seconds left at the speed so far; 0 where no step is done."""
        elapsed = time.perf_counter() - self._started
        steps = self.done - self._first_step
        return elapsed, elapsed / steps * (self.total - self.done) if steps else 0.0

    def _text(self) -> str:
        elapsed, left = self._times()
        parts = [f"{self.title} {self.done}/{self.total}"]
        parts += [f"{name} {value:.4g}" for name, value in self._values.items()]
        if self.units:
            parts.append(f"{self.units / elapsed:.0f} tokens/s")
        parts.append(f"{elapsed:.0f} s, {left:.0f} s left")
        return "  ".join(parts)

    def __enter__(self) -> Self:
        self._started = time.perf_counter()
        if _json_lines:
            self._emit(self._started, {})
        elif sys.stderr.isatty() and not dumb_terminal():
            self._bar = _terminal_bar()
            self._bar.add_task(self.title, total=self.total, completed=self.done)
            self._bar.start()
        elif self.short:
            self._last_shown = self._started
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()  # shows the cursor again and leaves the last state on a line
            self._bar = None


def _terminal_bar() -> rich.progress.Progress:
    """A bar and a text beside it. What is printed to stderr meanwhile appears above it."""
    from rich.progress import BarColumn, Progress, TextColumn

    return Progress(
        BarColumn(bar_width=24),
        TextColumn("{task.description}", markup=False),
        console=_stderr_console(),
        auto_refresh=False,
        redirect_stdout=False,
    )


@functools.cache
def _stderr_console() -> rich.console.Console:
    """One console for all bars, so that a bar within another is drawn below it."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)
