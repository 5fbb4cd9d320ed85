"""One answer that somebody waits for: what is wanted, what came, how it ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from edgeft.errors import EdgeftError
from edgeft.records import Sampling


class Busy(EdgeftError):
    """The queue is full."""

    def __init__(self, seconds: int) -> None:
        super().__init__("the server is busy", f"try again in {seconds} s")
        self.seconds = seconds


@dataclass(frozen=True)
class Want:
    ids: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    """texts that end the answer and are not part of it"""
    top: int | None = None
    """log probabilities of each token and of so many of the likeliest ones; None = of none"""
    echo: bool = False
    """log probabilities of the prompt, too"""
    ignore_eos: bool = False
    """go on behind the model's own stops"""


@dataclass(frozen=True, slots=True)
class Chosen:
    """One token with its probability."""

    id: int
    logprob: float | None
    """None: the first token of a prompt, which nothing predicts"""
    top: list[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Event:
    """What one step brought: text, tokens, and the end if it is that."""

    text: str = ""
    tokens: tuple[Chosen, ...] = ()
    """only where log probabilities are wanted; before any text, those of the prompt"""
    finish: str = ""
    """stop, length, cancelled or error"""
    error: EdgeftError | None = None

    def then(self, later: Event) -> Event:
        """Both as one."""
        tokens = self.tokens + later.tokens
        return Event(self.text + later.text, tokens, later.finish, later.error)


class Job:
    """`sink` is called in the engine's thread, or where the engine posts its events to."""

    def __init__(self, want: Want, sink: Callable[[Event], None]) -> None:
        self.want = want
        self.sink = sink
        self.created = time.perf_counter()
        self.first: float | None = None
        """seconds until the first token"""
        self.reused = 0
        """tokens of the prompt that were in the cache"""
        self.new = 0
        """tokens of the answer, a stop token left out"""
        self.finish = ""
        self.cancelled = False
        self.told = False
        """something came for it"""

    def cancel(self) -> None:
        """Nobody waits any more: the engine drops it at its next step."""
        self.cancelled = True


class StopText:
    """Cuts a stream at the first of some texts; holds back what may be the beginning of one.

    >>> stops = StopText(("END",))
    >>> stops.push("to the E"), stops.push("ND of"), stops.hit
    ('to the ', '', True)
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.hit = False

    def push(self, text: str) -> str:
        """What may be shown after `text` came."""
        if not self._stops:
            return text
        text = self._held + text
        found = [at for at in map(text.find, self._stops) if at >= 0]
        if found:
            self.hit, self._held = True, ""
            return text[: min(found)]
        held = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def rest(self) -> str:
        """What is left when the stream ends."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """The longest end of `text` that `stop` begins with."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((n for n in lengths if text.endswith(stop[:n])), 0)
