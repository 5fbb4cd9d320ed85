"""Progress and notes on stderr: a bar on a terminal, plain lines elsewhere.

    with Progress("train-qlora", total=110) as bar:
        bar.update(1, units=380, loss=0.42)     # units: tokens, for the rate

stdout is left to results.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from types import TracebackType
from typing import Self

LINE_SECONDS = 10.0
"""between two plain lines where stderr is no terminal"""


def say(text: str) -> None:
    print(f"edgeft: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep torch's and its neighbours' advice to developers out of the user's terminal."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    noisy = [logging.getLogger(name) for name in ("bitsandbytes", "transformers", "peft")]
    levels = [logger.level for logger in noisy]
    for logger in noisy:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(noisy, levels, strict=True):
            logger.setLevel(level)


class Progress:
    """Counts steps of `total`, tokens per second, the last values, and the time left."""

    def __init__(self, title: str, total: int, short: bool = False) -> None:
        """`short`: no plain line of work that is over before the first one is due."""
        self.title = title
        self.short = short
        self.total = total
        self.done = 0
        self.units = 0
        self._first = 0
        self._started = time.perf_counter()
        self._printed = 0.0
        self._values: dict[str, float] = {}
        self._terminal = sys.stderr.isatty()

    def start_at(self, done: int) -> None:
        """A resumed run has `done` steps behind it that cost no time now."""
        self.done = self._first = done

    def update(self, done: int, units: int = 0, **values: float) -> None:
        self.done += done
        self.units += units
        self._values.update(values)
        now = time.perf_counter()
        due = 0.1 if self._terminal else LINE_SECONDS
        over = self.done == self.total and not (self.short and not self._terminal)
        if now - self._printed >= due or over:
            self._printed = now
            self._print()

    def _print(self) -> None:
        elapsed = time.perf_counter() - self._started
        made = self.done - self._first
        left = elapsed / made * (self.total - self.done) if made else 0.0
        parts = [f"{self.title} {self.done}/{self.total}"]
        parts += [f"{key} {value:.4g}" for key, value in self._values.items()]
        if self.units:
            parts.append(f"{self.units / elapsed:.0f} tokens/s")
        parts.append(f"{elapsed:.0f} s, {left:.0f} s left")
        text = "  ".join(parts)
        if self._terminal:
            width = 24
            filled = round(width * self.done / max(1, self.total))
            bar = "█" * filled + "░" * (width - filled)
            print(f"\r\x1b[K{bar} {text}", end="", file=sys.stderr, flush=True)
        else:
            say(text)

    def __enter__(self) -> Self:
        self._started = time.perf_counter()
        if self.short and not self._terminal:
            self._printed = self._started
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._terminal:
            print(file=sys.stderr, flush=True)
