"""Takes a generation request, gives its answer in parts: what HTTP and the engines hand each other."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from edgeft.errors import EdgeftError
from edgeft.records import Sampling
from edgeft.tokenizer.answer_parts import AnswerForm
from edgeft.tokenizer.tool_calls import overlap


class Busy(EdgeftError):
    """The queue is full."""

    def __init__(self, seconds: int) -> None:
        super().__init__("the server is busy", f"try again in {seconds} s")
        self.seconds = seconds


@dataclass(frozen=True)
class GenerationRequest:
    """One answer to one prompt."""

    prompt_ids: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    """texts that end the answer and are not part of it"""
    logprobs: int | None = None
    """the log probability of each token, and those of so many of the likeliest; None = of none"""
    echo: bool = False
    """also the log probabilities of the prompt's tokens"""
    ignore_eos: bool = False
    """continue after the model's own stop tokens"""
    form: AnswerForm = field(default_factory=AnswerForm)
    """how the text of a chat's answer is split into reasoning, content and calls"""
    has_progress: bool = False
    """also deltas that say how much of the prompt was read"""
    is_grammar_optional: bool = False
    """answer without the grammar where the engine cannot follow it"""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token with its log probability."""

    id: int
    logprob: float | None
    """None: the first token of a prompt, which nothing predicts"""
    top: list[tuple[int, float]]
    """(id, log probability) of the likeliest tokens"""


@dataclass(frozen=True, slots=True)
class StreamDelta:
    """What one or several steps add to an answer."""

    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    """only where they were asked for; before any text, those of the prompt"""
    finish_reason: str = ""
    """stop, length, cancelled or error; "" = the answer goes on"""
    error: EdgeftError | None = None
    stop_text: str = ""
    """the one of `GenerationRequest.stop` that ended the answer"""
    read_tokens: int | None = None
    """of the prompt so far, only where they were asked for; such a delta has nothing else"""

    def followed_by(self, later: StreamDelta) -> StreamDelta:
        """Both as one; of two that say how much was read, the later one."""
        text, logprobs = self.text + later.text, self.logprobs + later.logprobs
        return replace(later, text=text, logprobs=logprobs)


Callback = Callable[[StreamDelta], None]


class Job:
    """A request in an engine. `callback` is called in the engine's thread, or where the engine sends
    its deltas to."""

    def __init__(self, request: GenerationRequest, callback: Callback) -> None:
        self.request = request
        self.callback = callback
        self.created = time.perf_counter()
        self.first_token_s: float | None = None
        """seconds from the creation to the first token"""
        self.cached_tokens = 0
        """tokens of the prompt that were in the cache"""
        self.new_tokens = 0
        """tokens of the answer, without a stop token"""
        self.drafted_tokens = self.accepted_tokens = 0
        """that speculation guessed, and those of them that were right"""
        self.seconds: float | None = None
        """from the creation to the end"""
        self.cancelled = False
        self.started = False
        """a delta was sent"""

    def cancel(self) -> None:
        """Nobody waits any more: the engine drops the job at its next step."""
        self.cancelled = True


class StopText:
    """Cuts a stream at the first of some texts; holds back what may be the beginning of one.

    >>> stops = StopText(("END",))
    >>> stops.push("to the E"), stops.push("ND of"), stops.hit
    ('to the ', '', 'END')
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.hit = ""
        """the text that ended the stream"""

    def push(self, text: str) -> str:
        """The text that may be shown after `text` came."""
        if not self._stops:
            return text
        text = self._held + text
        places = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if places:
            at, self.hit = min(places)
            self._held = ""
            return text[:at]
        length = max(overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - length :]
        return text[: len(text) - length]

    def rest(self) -> str:
        """The text that is still held back when the stream ends."""
        text, self._held = self._held, ""
        return text
