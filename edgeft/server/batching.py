"""Many answers at a time on llama.cpp.

A step is one token for each running answer and at most `BESIDE` tokens of prompts, so that running
answers flow on while a long prompt is read. A sequence keeps its tokens after its answer: the next
turn of a conversation is given to it and reads only what is new.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from edgeft.errors import EdgeftError
from edgeft.runtimes.gguf import GGUFRuntime
from edgeft.runtimes.sampling import common_prefix
from edgeft.runtimes.sequences import Sampler, log_probabilities
from edgeft.server.engine import Engine, Worker
from edgeft.server.jobs import Chosen, Event, Job, StopText

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


class _Slot:
    """An answer on its sequence."""

    def __init__(self, job: Job, number: int, sampler: Sampler, decode: Callable[[int], str]):
        self.job, self.number, self.sampler, self.decode = job, number, sampler, decode
        self.stops = StopText(job.want.stop)
        self.last: int | None = None
        """the newest token, which the next step reads; None while the prompt is read"""


class Batching(Engine):
    can = frozenset({"logprobs", "grammar", "penalties", "top_k", "min_p", "bias", "ignore_eos"})

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
        self._decoder, self._ends, self._embed = runtime.decoder, runtime.eos_ids, runtime.embed
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
        job.reused = self._many.truncate(number, self._common(number, prompt))
        self._slots[number] = _Slot(job, number, sampler, self._decoder())

    def _common(self, number: int, prompt: Sequence[int]) -> int:
        """Tokens that a sequence has in common with a prompt. What was stepped to went through other
        kernels than a prompt does: isolated, it is read again."""
        same = common_prefix(self._many.tokens[number], prompt)
        return min(same, self._many.prompt_lengths[number]) if self._isolated else same

    def _read(self, slot: _Slot, budget: int) -> int:
        """A part of a prompt; how many tokens it had."""
        want, job = slot.job.want, slot.job
        begin = len(self._many.tokens[slot.number])
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
        parts = -(-len(running) // self._many.max_batch)
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
        if token in self._ends and not want.ignore_eos:
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
