"""Takes jobs into the bounded queue of a model, gives them to the thread that computes their answers.

`Worker` is the thread, `Engine` the queue and the counts of one model. Its subclasses compute:
`batching_engine.BatchingEngine` many answers at a time on llama.cpp, `sequential_engine.SequentialEngine`
one at a time on any runtime.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from edgeft.errors import EdgeftError, ResourceError
from edgeft.progress import say
from edgeft.runtimes.protocol import Runtime
from edgeft.server.jobs import Busy, Callback, Job, StreamDelta
from edgeft.server.model_facts import ModelFacts

T = TypeVar("T")

SEND_INTERVAL_S = 0.05
"""between two calls of `Engine.deliver` that carry neither a first nor a last token"""
MAX_RETRY_S = 60
"""that a refused client is asked to wait"""
Deliver = Callable[[list[tuple[Callback, StreamDelta]]], None]


@dataclass(frozen=True)
class Counts:
    """Totals since the start; the last three are those of now."""

    requests: int
    cancelled: int
    """of the requests"""
    prompt_tokens: int
    reused_tokens: int
    new_tokens: int
    drafted_tokens: int
    """guessed by speculation"""
    accepted_tokens: int
    """of the guessed"""
    seconds: float
    """spent computing"""
    running: int
    waiting: int
    slots: int


def _call_directly(deltas: list[tuple[Callback, StreamDelta]]) -> None:
    for callback, delta in deltas:
        callback(delta)


class Worker:
    """The thread in which all models of a process compute, in turn.

    libgomp keeps a pool of threads for each thread that calls it. Where all pools together have more
    threads than there are cores, it lets them sleep at every barrier
    (gcc/libgomp/wait.h: `gomp_throttled_spin_count_var`), at a fifth of the speed.
    """

    def __init__(self) -> None:
        self.awake = threading.Condition()
        self.engines: list[Engine] = []
        self._calls: deque[Callable[[], None]] = deque()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="worker", daemon=True)
        self._thread.start()

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` in the thread, between two steps; its result or exception."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001  raised where it is waited for
                future.set_exception(error)

        with self.awake:
            if self._closed:
                raise ResourceError("the server shuts down")
            self._calls.append(run)
            self.awake.notify()
        return future.result()

    def close(self) -> None:
        with self.awake:
            self._closed = True
            self.awake.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self.awake:
                while not (self._calls or self._closed or any(e.busy for e in self.engines)):
                    self.awake.wait()
                call = self._calls.popleft() if self._calls else None
                is_last = self._closed and not self._calls
            if call:
                call()
            if is_last:
                return
            for engine in list(self.engines):
                if engine.busy:
                    engine.advance()


class Engine:
    """The queue and the counts of one model; a subclass computes."""

    slots = 1
    """answers at a time"""
    supports: frozenset[str] = frozenset()
    """fields of a request that the engine can serve besides temperature, top_p and seed"""

    def __init__(self, name: str, runtime: Runtime, max_waiting: int, worker: Worker) -> None:
        """`max_waiting`: answers that may wait for a slot."""
        self.name = name
        self.runtime = runtime
        self.facts = ModelFacts()
        """of its artifact; whoever opens the engine sets them"""
        self.deliver: Deliver = _call_directly
        """takes the deltas of a step; set before the first job"""
        self._max_waiting = max_waiting
        self._worker = worker
        self._waiting: deque[Job] = deque()
        self._unsent: dict[Job, StreamDelta] = {}
        self._urgent, self._sent_at = False, 0.0
        self._closed = False
        self._seconds_per_answer = 1.0
        names = ("requests", "cancelled", "prompt_tokens", "reused_tokens", "new_tokens",
                 "drafted_tokens", "accepted_tokens")  # fmt: skip
        self._totals = dict.fromkeys(names, 0)
        self._computing_s = 0.0

    def check(self, job: Job) -> None:
        """InputError for a job that cannot be computed, before it waits in the queue."""

    def embeddings(self, prompts: Sequence[Sequence[int]]) -> Generator[list[float]]:
        """The vector of each, read in parts between the steps of the running answers. To be closed.
        NotImplementedError where the engine has none."""
        raise NotImplementedError

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue all of them or none; Busy where the queue is full."""
        with self._worker.awake:
            if self._closed:
                raise ResourceError("the server shuts down")
            ahead = len(self._waiting) + self.running
            if ahead >= self._max_waiting + self.slots:
                seconds = self._seconds_per_answer * (len(self._waiting) + 1) / self.slots
                raise Busy(min(MAX_RETRY_S, max(1, math.ceil(seconds))))
            self._waiting.extend(jobs)
            self._worker.awake.notify()

    @property
    def worker(self) -> Worker:
        return self._worker

    @property
    def counts(self) -> Counts:
        return Counts(
            **self._totals,
            seconds=self._computing_s,
            running=self.running,
            waiting=len(self._waiting),
            slots=self.slots,
        )

    def take_counts(self, old: Engine) -> None:
        """Go on counting from another engine; both count together until `old` is closed."""
        self._totals, self._computing_s = old._totals, old._computing_s

    def cancel_all(self) -> None:
        with self._worker.awake:
            for job in [*self._waiting, *self._running_jobs()]:
                job.cancel()

    def close(self) -> None:
        """Cancel all jobs and free everything."""
        if not self._closed:
            self._closed = True
            self._worker.call(self._end_all)

    def _end_all(self) -> None:
        self.cancel_all()
        while self.busy:
            self.advance()
        self._worker.engines.remove(self)
        self._free()

    @property
    def running(self) -> int:
        """Answers that have a slot."""
        return len(self._running_jobs())

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self.running)

    def advance(self) -> None:
        """One step, in the worker's thread."""
        started = time.perf_counter()
        try:
            self._drop_cancelled_waiting()
            self._step()
        except EdgeftError as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001  the thread must go on
            say(f"error: {self.name}: {error!r}")
            self._fail(EdgeftError(f"the engine failed: {error!r}"))
        self._computing_s += time.perf_counter() - started
        self._flush()

    def _running_jobs(self) -> list[Job]:
        """Those that have a slot."""
        raise NotImplementedError

    def _step(self) -> None:
        """Give waiting jobs a slot, compute one step of the running ones, send their deltas."""
        raise NotImplementedError

    def _fail(self, error: EdgeftError) -> None:
        """End the running jobs with an error."""
        raise NotImplementedError

    def _free(self) -> None:
        raise NotImplementedError

    def _drop_cancelled_waiting(self) -> None:
        if any(job.cancelled for job in list(self._waiting)):
            with self._worker.awake:
                cancelled = [job for job in self._waiting if job.cancelled]
                self._waiting = deque(job for job in self._waiting if not job.cancelled)
            for job in cancelled:
                self._finish(job, StreamDelta(finish_reason="cancelled"))

    def _next_waiting(self) -> Job | None:
        with self._worker.awake:
            return self._waiting.popleft() if self._waiting else None

    def _send(self, job: Job, delta: StreamDelta) -> None:
        """Add to what the next `_flush` sends."""
        is_progress = delta.read_tokens is not None
        self._urgent |= bool(delta.finish_reason) or is_progress or not job.started
        job.started |= not is_progress
        unsent = self._unsent.get(job)
        self._unsent[job] = unsent.followed_by(delta) if unsent else delta

    def _flush(self) -> None:
        """Send the first and the last token of an answer at once, all others every
        `SEND_INTERVAL_S`: whoever receives them needs the cores that compute."""
        now = time.perf_counter()
        if self._unsent and (self._urgent or now - self._sent_at >= SEND_INTERVAL_S):
            self.deliver([(job.callback, delta) for job, delta in self._unsent.items()])
            self._unsent, self._urgent, self._sent_at = {}, False, now

    def _finish(self, job: Job, last: StreamDelta) -> None:
        """Count a job that has ended and send its last delta."""
        job.seconds = seconds = time.perf_counter() - job.created
        self._seconds_per_answer += 0.2 * (seconds - self._seconds_per_answer)
        totals = self._totals
        totals["requests"] += 1
        totals["cancelled"] += last.finish_reason == "cancelled"
        totals["prompt_tokens"] += len(job.request.prompt_ids)
        totals["reused_tokens"] += job.cached_tokens
        totals["new_tokens"] += job.new_tokens
        self._send(job, last)
