"""The thread that computes answers, and the bounded queue of each model before it.

`Worker` is the thread and `Engine` the queue; `Batching` computes many answers at a time on llama.cpp.
A step is one token for each running answer and at most `BESIDE` tokens of prompts, so that running
answers flow on while a long prompt is read. A sequence keeps its tokens after its answer: the next
turn of a conversation is given to it and reads only what is new.
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
from edgeft.generation import common_prefix
from edgeft.progress import say
from edgeft.runtimes import Runtime
from edgeft.runtimes.gguf import GGUFRuntime
from edgeft.runtimes.sequences import Sampler, log_probabilities
from edgeft.server.jobs import Busy, Chosen, Event, Job, StopText

T = TypeVar("T")

CHUNK = 128
"""tokens of prompts that are read in one step"""
BESIDE = 64
"""likewise, where answers are running"""
ECHO = 32
"""likewise, where each token's logits are wanted"""
WIDE = 8
"""tokens of a prompt that are read together at least: fewer go through other kernels"""
REST = 32
"""fewer tokens of a prompt than that are no step of their own, as they take nearly as long as many;
not more than CHUNK, BESIDE and ECHO, for nothing would be read"""
REUSE = 16
"""tokens that a prompt must share with a free sequence to be given to it for that"""
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
                calls, self._calls = self._calls, deque()
            for call in calls:
                call()
            if self._closed:
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


class _Slot:
    """An answer on its sequence."""

    def __init__(self, job: Job, number: int, sampler: Sampler, decode: Callable[[int], str]):
        self.job, self.number, self.sampler, self.decode = job, number, sampler, decode
        self.stops = StopText(job.want.stop)
        self.last: int | None = None
        """the newest token, which the next step reads; None while the prompt is read"""


class Batching(Engine):
    can = frozenset({"logprobs", "grammar", "penalties", "top_k", "min_p", "bias", "past_stops"})

    def __init__(
        self,
        name: str,
        runtime: GGUFRuntime,
        slots: int,
        queue: int,
        worker: Worker,
        isolated: bool = True,
    ) -> None:
        super().__init__(name, runtime, queue, worker)
        self.slots = slots
        self._isolated = isolated
        self._many = worker.call(lambda: runtime.sequences(slots, isolated))
        self._decoder, self._ends, self._embed = runtime.decoder, runtime.ends, runtime.embed
        self._slots: dict[int, _Slot] = {}
        self._used = [0.0] * slots
        """when each sequence was last written to"""
        worker.engines.append(self)

    def embed(self, ids: Sequence[int]) -> list[float]:
        found: list[float] = self._worker.call(lambda: self._embed(ids)).tolist()
        return found

    def check(self, job: Job) -> None:
        if job.want.sampling.grammar:
            self._many.sampler(job.want.sampling).close()

    def _jobs(self) -> list[Job]:
        return [slot.job for slot in list(self._slots.values())]

    def _compute(self) -> None:
        self._drop()
        while len(self._slots) < self.slots and (job := self._next()):
            self._take(job)
        budget = CHUNK
        if any(slot.last is not None for slot in self._slots.values()):
            self._step()
            self._drop()
            self._flush()  # the texts are on their way while the prompts are read
            budget = min(CHUNK, BESIDE)
        for slot in sorted(self._slots.values(), key=lambda slot: slot.job.created):
            if slot.last is None and budget > 0:
                budget -= self._read(slot, budget)

    def _drop(self) -> None:
        for slot in list(self._slots.values()):
            if slot.job.cancelled:
                self._leave(slot, "cancelled")

    def _take(self, job: Job) -> None:
        """Give a job a free sequence beside running ones, for llama.cpp computes only neighbours
        together; among those the one that begins most like its prompt, else the one that was unused
        for longest."""
        want = job.want
        prompt = [] if want.echo else want.ids[: -WIDE if self._isolated else -1]
        shared = [self._common(number, prompt) for number in range(self.slots)]
        free = [i for i in range(self.slots) if i not in self._slots]

        def fitness(i: int) -> tuple[float, ...]:
            beside = (i - 1 in self._slots) + (i + 1 in self._slots)
            return beside, shared[i] if shared[i] >= REUSE else 0, -self._used[i]

        number = max(free, key=fitness)
        best = max(range(self.slots), key=shared.__getitem__)
        # A copy moves the whole sequence, which takes as long as reading some tokens does.
        if shared[best] > shared[number] + max(REUSE, self._many.length // 32):
            self._many.copy(best, number)
        try:
            sampler = self._many.sampler(want.sampling)
        except EdgeftError as error:
            self._end(job, "error", error=error)
            return
        job.reused = self._many.keep(number, self._common(number, prompt))
        self._slots[number] = _Slot(job, number, sampler, self._decoder())

    def _common(self, number: int, prompt: Sequence[int]) -> int:
        """Tokens that a sequence has in common with a prompt. What was stepped to went through other
        kernels than a prompt does: isolated, it is read again."""
        same = common_prefix(self._many.held[number], prompt)
        return min(same, self._many.prompts[number]) if self._isolated else same

    def _read(self, slot: _Slot, budget: int) -> int:
        """A part of a prompt; how many tokens it had."""
        want, job = slot.job.want, slot.job
        begin = len(self._many.held[slot.number])
        end = begin + min(ECHO if want.echo else CHUNK, budget)
        if end + REST > len(want.ids):
            end = len(want.ids)
        elif end - begin < REST:
            return budget  # in the next step
        part = want.ids[begin:end]
        self._many.read(slot.number, part, len(part) if want.echo else 1)
        rows = self._many.rows
        if want.echo:
            top = want.top or 0
            first = () if begin else (Chosen(want.ids[0], None, []),)
            later = (
                Chosen(token, *log_probabilities(row, token, top))
                for row, token in zip(rows, want.ids[begin + 1 : end + 1], strict=False)
            )
            self._tell(job, Event(tokens=(*first, *later)))
        if end == len(want.ids):
            if want.max_tokens:
                self._choose(slot, len(rows) - 1)
            else:
                self._leave(slot, "length")
        return len(part)

    def _step(self) -> None:
        running = [self._slots[number] for number in sorted(self._slots)]
        running = [slot for slot in running if slot.last is not None]
        parts = -(-len(running) // self._many.width)
        for i in range(parts):
            part = running[len(running) * i // parts : len(running) * (i + 1) // parts]
            self._many.step([(slot.number, slot.last or 0) for slot in part])
            for row, slot in enumerate(part):
                self._choose(slot, row)

    def _choose(self, slot: _Slot, row: int) -> None:
        """The next token of an answer, and what it means for it."""
        job, want = slot.job, slot.job.want
        try:
            token = self._many.choose(row, slot.sampler)
        except EdgeftError as error:
            self._leave(slot, "error", error=error)
            return
        if job.first is None:
            job.first = time.perf_counter() - job.created
        if token in self._ends and not want.past_stops:
            self._leave(slot, "stop", slot.stops.rest())
            return
        chosen: tuple[Chosen, ...] = ()
        if want.top is not None:
            chosen = (Chosen(token, *log_probabilities(self._many.row(row), token, want.top)),)
        job.new += 1
        slot.last = token
        text = slot.stops.push(slot.decode(token))
        if slot.stops.hit:
            self._leave(slot, "stop", text, chosen)
        elif job.new == want.max_tokens or len(want.ids) + job.new > self._many.length:
            self._leave(slot, "length", text + slot.stops.rest(), chosen)
        elif text or chosen:
            self._tell(job, Event(text, chosen))

    def _leave(self, slot: _Slot, finish: str, text: str = "", tokens: tuple[Chosen, ...] = (),
               error: EdgeftError | None = None) -> None:  # fmt: skip
        del self._slots[slot.number]
        self._used[slot.number] = time.perf_counter()
        slot.sampler.close()
        self._end(slot.job, finish, text, tokens, error)

    def _fail(self, error: EdgeftError) -> None:
        for slot in list(self._slots.values()):
            self._leave(slot, "error", error=error)

    def _free(self) -> None:
        self._many.close()
        self.runtime.close()
