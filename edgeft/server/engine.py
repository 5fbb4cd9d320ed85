"""The thread that computes answers, and the bounded queue of each model before it.

`Worker` is the thread and `Engine` the queue; what computes is `batching.Batching`, many answers at a
time on llama.cpp, or `turns.OneByOne`.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from edgeft.errors import EdgeftError, ResourceError
from edgeft.progress import say
from edgeft.runtimes.protocol import Runtime
from edgeft.server.jobs import Busy, Chosen, Event, Job

T = TypeVar("T")

PAUSE = 0.05
"""seconds between two calls of `Engine.post`, where nobody waits for the first token or the last"""
Post = Callable[[list[tuple[Callable[[Event], None], Event]]], None]


@dataclass(frozen=True)
class Counts:
    """Since the start, and now."""

    requests: int
    cancelled: int
    """of them"""
    prompt_tokens: int
    reused_tokens: int
    new_tokens: int
    seconds: float
    """spent computing"""
    running: int
    waiting: int
    slots: int


def _directly(events: list[tuple[Callable[[Event], None], Event]]) -> None:
    for sink, event in events:
        sink(event)


class Worker:
    """The thread in which all models of a process compute, in turn.

    libgomp keeps a pool of threads for each thread that calls it, and where all pools together have
    more threads than there are cores it lets them sleep at every barrier
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
        """Run something in the thread, between two steps."""
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
                last = self._closed and not self._calls
            if call:
                call()
            if last:
                return
            for engine in list(self.engines):
                if engine.busy:
                    engine.advance()


class Engine:
    """The queue and the counts of one model; a subclass computes."""

    slots = 1
    can: frozenset[str] = frozenset()
    """what the engine can do besides temperature, top_p and seed"""

    def __init__(self, name: str, runtime: Runtime, queue: int, worker: Worker) -> None:
        """`queue`: answers that may wait for a slot."""
        self.name = name
        self.runtime = runtime
        self.post: Post = _directly
        """where the events of a step go to, set before the first job"""
        self._bound = queue
        self._worker = worker
        self._waiting: deque[Job] = deque()
        self._events: dict[Job, Event] = {}
        self._urgent, self._posted = False, 0.0
        self._closed = False
        self._seconds_each = 1.0
        names = "requests", "cancelled", "prompt_tokens", "reused_tokens", "new_tokens"
        self._totals = dict.fromkeys(names, 0)
        self._computing = 0.0

    def check(self, job: Job) -> None:
        """InputError for what cannot be computed, before it waits in the queue."""

    def embed(self, ids: Sequence[int]) -> list[float]:
        """Between two steps of the running answers; NotImplementedError where the engine cannot."""
        raise NotImplementedError

    def submit(self, jobs: Sequence[Job]) -> None:
        """All of them or none. Busy where the queue is full."""
        with self._worker.awake:
            if self._closed:
                raise ResourceError("the server shuts down")
            ahead = len(self._waiting) + self.running
            if ahead >= self._bound + self.slots:
                seconds = self._seconds_each * (len(self._waiting) + 1) / self.slots
                raise Busy(min(60, max(1, math.ceil(seconds))))
            self._waiting.extend(jobs)
            self._worker.awake.notify()

    @property
    def counts(self) -> Counts:
        return Counts(
            **self._totals,
            seconds=self._computing,
            running=self.running,
            waiting=len(self._waiting),
            slots=self.slots,
        )

    def cancel_all(self) -> None:
        with self._worker.awake:
            for job in [*self._waiting, *self._jobs()]:
                job.cancel()

    def close(self) -> None:
        """Cancel what runs and free everything."""
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
        return len(self._jobs())

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self.running)

    def advance(self) -> None:
        """One step, in the worker's thread."""
        started = time.perf_counter()
        try:
            self._forget()
            self._compute()
        except EdgeftError as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001  the thread must go on
            say(f"error: {self.name}: {error!r}")
            self._fail(EdgeftError(f"the engine failed: {error!r}"))
        self._computing += time.perf_counter() - started
        self._flush()

    def _jobs(self) -> list[Job]:
        """Those that have a slot."""
        raise NotImplementedError

    def _compute(self) -> None:
        """Give waiting jobs a place, do one step for the running ones, tell what came."""
        raise NotImplementedError

    def _fail(self, error: EdgeftError) -> None:
        """End the running jobs with an error."""
        raise NotImplementedError

    def _free(self) -> None:
        raise NotImplementedError

    def _forget(self) -> None:
        """Make room in the queue where nobody waits any more."""
        if any(job.cancelled for job in list(self._waiting)):
            with self._worker.awake:
                gone = [job for job in self._waiting if job.cancelled]
                self._waiting = deque(job for job in self._waiting if not job.cancelled)
            for job in gone:
                self._end(job, "cancelled")

    def _next(self) -> Job | None:
        with self._worker.awake:
            return self._waiting.popleft() if self._waiting else None

    def _tell(self, job: Job, event: Event) -> None:
        known = self._events.get(job)
        self._urgent |= bool(event.finish) or not job.told
        job.told = True
        self._events[job] = known.then(event) if known else event

    def _flush(self) -> None:
        """Whoever listens needs the cores that compute: so it is told of first and last tokens at
        once, and of those between after a pause."""
        now = time.perf_counter()
        if self._events and (self._urgent or now - self._posted >= PAUSE):
            self.post([(job.sink, event) for job, event in self._events.items()])
            self._events, self._urgent, self._posted = {}, False, now

    def _end(self, job: Job, finish: str, text: str = "", tokens: tuple[Chosen, ...] = (),
             error: EdgeftError | None = None) -> None:  # fmt: skip
        job.finish = finish
        seconds = time.perf_counter() - job.created
        self._seconds_each += 0.2 * (seconds - self._seconds_each)
        totals = self._totals
        totals["requests"] += 1
        totals["cancelled"] += finish == "cancelled"
        totals["prompt_tokens"] += len(job.want.ids)
        totals["reused_tokens"] += job.reused
        totals["new_tokens"] += job.new
        self._tell(job, Event(text, tokens, finish, error))
