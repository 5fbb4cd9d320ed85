"""Takes jobs, gives many answers at a time on llama.cpp.

A step computes one token of each running answer and at most `PROMPT_TOKENS_BESIDE_ANSWERS` tokens of
prompts, so that running answers continue while a long prompt is read. A sequence keeps its tokens after
its answer. The next turn of the conversation gets the same sequence and reads only the new tokens.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Generator, Sequence
from typing import Any

from edgeft.errors import EdgeftError, InputError, ResourceError
from edgeft.runtimes.draft_model import DraftModel, ModelDraft
from edgeft.runtimes.gguf import GGUFRuntime
from edgeft.runtimes.sampling import common_prefix
from edgeft.runtimes.sequences import Sampler, log_probabilities
from edgeft.runtimes.speculation import Draft, NgramDraft
from edgeft.server.engine import Engine, Worker
from edgeft.server.jobs import GenerationRequest, Job, StopText, StreamDelta, TokenLogprob

PROMPT_TOKENS_PER_STEP = 128
PROMPT_TOKENS_BESIDE_ANSWERS = 64
"""per step, where answers are running"""
ECHO_TOKENS_PER_STEP = 32
"""of a prompt whose own log probabilities are asked for"""
MIN_PROMPT_TOKENS = 8
"""of a prompt that are read together; fewer go through other kernels"""
MIN_STEP_TOKENS = 32
"""of a prompt that are a step of their own, since fewer take nearly as long. Not more than the three
limits per step, for nothing would be read"""
MIN_SHARED_TOKENS = 16
"""that a prompt shares with a free sequence, so that it is given to that sequence"""


class _Slot:
    """A job on its sequence."""

    def __init__(
        self,
        job: Job,
        number: int,
        sampler: Sampler,
        decode: Callable[[int], str],
        draft: Draft | None = None,
    ) -> None:
        self.job, self.number, self.sampler, self.decode = job, number, sampler, decode
        self.draft = draft
        """guesses the tokens that follow; None = without speculation"""
        self.stops = StopText(job.request.stop)
        self.last_token: int | None = None
        """the newest token, which the next step reads; None while the prompt is read"""


class BatchingEngine(Engine):
    supports = frozenset(
        {
            "logprobs",
            "grammar",
            "penalties",
            "top_k",
            "min_p",
            "bias",
            "ignore_eos",
            "return_progress",
        }
    )

    def __init__(
        self,
        name: str,
        runtime: GGUFRuntime,
        slots: int,
        max_waiting: int,
        worker: Worker,
        isolated: bool = True,
        grows: bool = True,
        speculate: bool = False,
        draft_model: DraftModel | None = None,
    ) -> None:
        """`isolated`: an answer does not depend on the jobs beside it. `grows`: the cache grows by
        need; otherwise it has its full size at once. `speculate`: guess tokens by what the prompt
        repeats, while one answer runs. `draft_model`: guess them by this model instead, which is
        closed in the end. InputError where guesses would change an isolated answer.
        """
        super().__init__(name, runtime, max_waiting, worker)
        self.slots = slots
        self._isolated = isolated
        self._sequences = worker.call(lambda: runtime.sequences(slots, isolated, grows))
        self._draft_model = draft_model
        self._speculates = speculate or draft_model is not None
        if self._speculates:
            self._check_speculation()
        self._decoder, self._eos_ids = runtime.decoder, runtime.eos_ids
        self._embeddings = runtime.embeddings
        self._open_embeddings: list[Generator[Any]] = []
        self._slots: dict[int, _Slot] = {}
        """number of the sequence -> the job on it"""
        self._last_used = [0.0] * slots
        """of each sequence, when its last job ended"""
        worker.engines.append(self)

    def embeddings(self, prompts: Sequence[Sequence[int]]) -> Generator[list[float]]:
        steps = self._embeddings(prompts)
        self._open_embeddings.append(steps)

        def close() -> None:
            steps.close()
            self._open_embeddings.remove(steps)

        try:
            for _ in prompts:
                while (vector := self._worker.call(lambda: next(steps, ()))) is None:
                    pass
                if isinstance(vector, tuple):  # `_free` has closed it
                    raise ResourceError("the server shuts down")
                yield vector.tolist()
        finally:
            with contextlib.suppress(ResourceError):  # the worker is closed, so `_free` has run
                self._worker.call(close)

    def check(self, job: Job) -> None:
        if job.request.sampling.grammar:
            self._sequences.sampler(job.request.sampling).close()

    def _running_jobs(self) -> list[Job]:
        return [slot.job for slot in list(self._slots.values())]

    def _step(self) -> None:
        self._drop_cancelled()
        while len(self._slots) < self.slots and (job := self._next_waiting()):
            self._start(job)
        budget = PROMPT_TOKENS_PER_STEP
        if any(slot.last_token is not None for slot in self._slots.values()):
            self._decode()
            self._drop_cancelled()
            self._flush()  # the texts are on their way while the prompts are read
            budget = min(PROMPT_TOKENS_PER_STEP, PROMPT_TOKENS_BESIDE_ANSWERS)
        for slot in sorted(self._slots.values(), key=lambda slot: slot.job.created):
            if slot.last_token is None and budget > 0:
                budget -= self._read_prompt(slot, budget)

    def _drop_cancelled(self) -> None:
        for slot in list(self._slots.values()):
            if slot.job.cancelled:
                self._end(slot, "cancelled")

    def _start(self, job: Job) -> None:
        """Give a job a sequence that begins like its prompt."""
        request = job.request
        try:
            self._sequences.reserve(len(request.prompt_ids) + 1)
            sampler = self._sequences.sampler(request.sampling)
        except EdgeftError as error:
            self._finish(job, StreamDelta(finish_reason="error", error=error))
            return
        unread = MIN_PROMPT_TOKENS if self._isolated else 1
        prompt = () if request.echo else request.prompt_ids[:-unread]
        shared = [self._shared_tokens(number, prompt) for number in range(self.slots)]
        # A copy moves the whole sequence, which takes as long as reading some tokens does.
        copy_cost = max(MIN_SHARED_TOKENS, self._sequences.room // 32)
        number, source = choose_sequence(shared, self._slots, self._last_used, copy_cost)
        if source is not None:
            self._sequences.copy(source, number)
        job.cached_tokens = self._sequences.truncate(number, self._shared_tokens(number, prompt))
        self._slots[number] = slot = _Slot(
            job, number, sampler, self._decoder(), self._draft(request)
        )
        self._send_progress(slot)

    def _draft(self, request: GenerationRequest) -> Draft | None:
        if not self._speculates:
            return None
        ids = request.prompt_ids
        return ModelDraft(self._draft_model, ids) if self._draft_model else NgramDraft(ids)

    def _shared_tokens(self, number: int, prompt: Sequence[int]) -> int:
        """Tokens at the beginning of a prompt that a sequence already holds. Isolated, only those
        that were read as a prompt: single tokens go through other kernels."""
        shared = common_prefix(self._sequences.tokens[number], prompt)
        return min(shared, self._sequences.prompt_lengths[number]) if self._isolated else shared

    def _read_prompt(self, slot: _Slot, budget: int) -> int:
        """Read a part of a prompt; the tokens of `budget` that this took."""
        request = slot.job.request
        ids = request.prompt_ids
        begin = len(self._sequences.tokens[slot.number])
        most = ECHO_TOKENS_PER_STEP if request.echo else PROMPT_TOKENS_PER_STEP
        end = begin + min(most, budget)
        if end + MIN_STEP_TOKENS > len(ids):
            end = len(ids)
        elif end - begin < MIN_STEP_TOKENS:
            return budget  # in the next step
        outputs = end - begin if request.echo else 1
        self._sequences.read(slot.number, ids[begin:end], outputs)
        self._send_progress(slot)
        if request.echo:
            self._send_echo(slot, begin, end)
        if end == len(ids):
            if request.max_tokens:
                self._choose(slot, outputs - 1)
            else:
                self._end(slot, "length")
        return end - begin

    def _send_progress(self, slot: _Slot) -> None:
        if slot.job.request.has_progress:
            read = len(self._sequences.tokens[slot.number])
            self._send(slot.job, StreamDelta(read_tokens=read))
            self._flush()

    def _send_echo(self, slot: _Slot, begin: int, end: int) -> None:
        """The log probabilities of the tokens that follow ids[begin:end] in the prompt, and of the
        first one."""
        ids, top = slot.job.request.prompt_ids, slot.job.request.logprobs or 0
        first = () if begin else (TokenLogprob(ids[0], None, []),)
        later = (
            TokenLogprob(token, *log_probabilities(row, token, top))
            for row, token in zip(self._sequences.rows, ids[begin + 1 : end + 1], strict=False)
        )
        self._send(slot.job, StreamDelta(logprobs=(*first, *later)))

    def _decode(self) -> None:
        """One token of each running answer, in parts of at most `max_batch` sequences."""
        running = [self._slots[number] for number in sorted(self._slots)]
        running = [slot for slot in running if slot.last_token is not None and self._has_room(slot)]
        if len(running) == 1 and self._step_ahead(running[0]):
            return
        parts = -(-len(running) // self._sequences.max_batch)
        for i in range(parts):
            part = running[len(running) * i // parts : len(running) * (i + 1) // parts]
            self._sequences.step([(slot.number, slot.last_token or 0) for slot in part])
            for row, slot in enumerate(part):
                self._choose(slot, row)

    def _step_ahead(self, slot: _Slot) -> bool:
        """The next token of an answer and those after it that were guessed right. False where there is
        no guess."""
        number, draft = slot.number, slot.draft
        length = len(self._sequences.tokens[number])
        most = min(
            self._sequences.max_ahead - 1,
            self._sequences.room - length - 1,
            slot.job.request.max_tokens - slot.job.new_tokens - 1,
        )
        guess = draft.propose(most) if draft and most > 0 else []
        if not draft or not guess:
            return False
        self._sequences.step_ahead(number, [slot.last_token or 0, *guess])
        # Each row is used by the same sampler in the same order as without a guess, so that the
        # answer is the same, random choices included.
        accepted = 0
        self._choose(slot, 0)
        while (
            accepted < len(guess) and number in self._slots and slot.last_token == guess[accepted]
        ):
            accepted += 1
            self._choose(slot, accepted)
        self._sequences.truncate(number, length + 1 + accepted)
        draft.verified(len(guess), accepted)
        slot.job.drafted_tokens += len(guess)
        slot.job.accepted_tokens += accepted
        self._totals["drafted_tokens"] += len(guess)
        self._totals["accepted_tokens"] += accepted
        return True

    def _check_speculation(self) -> None:
        """InputError where the model cannot compute several tokens as it computes one."""
        sequences = self._sequences
        if self._isolated:
            self._worker.call(sequences.probe_ahead)
        if sequences.max_ahead > 1:
            return
        self._worker.call(sequences.close)
        raise InputError(
            f"speculation would change the answers of {self.name}: with this cache and these weights "
            "llama.cpp computes several tokens otherwise than one",
            "--kv-type q8_0-f16, or --no-batch-invariant",
        )

    def _has_room(self, slot: _Slot) -> bool:
        """For one more token. Where the cache cannot grow, this answer ends and no other."""
        try:
            self._sequences.reserve(len(self._sequences.tokens[slot.number]) + 1)
        except ResourceError as error:
            self._end(slot, "error", error=error)
            return False
        return True

    def _choose(self, slot: _Slot, row: int) -> None:
        """Choose the next token of an answer by a row of logits; send its text or end the answer."""
        job, request = slot.job, slot.job.request
        try:
            token = self._sequences.choose(row, slot.sampler)
        except EdgeftError as error:
            self._end(slot, "error", error=error)
            return
        if job.first_token_s is None:
            job.first_token_s = time.perf_counter() - job.created
        if token in self._eos_ids and not request.ignore_eos:
            self._end(slot, "stop", slot.stops.rest())
            return
        logprobs: tuple[TokenLogprob, ...] = ()
        if request.logprobs is not None:
            values = log_probabilities(self._sequences.row(row), token, request.logprobs)
            logprobs = (TokenLogprob(token, *values),)
        job.new_tokens += 1
        slot.last_token = token
        if slot.draft:
            slot.draft.append(token)
        text = slot.stops.push(slot.decode(token))
        length = len(request.prompt_ids) + job.new_tokens
        if slot.stops.hit:
            self._end(slot, "stop", text, logprobs)
        elif job.new_tokens == request.max_tokens or length > self._sequences.length:
            self._end(slot, "length", text + slot.stops.rest(), logprobs)
        elif text or logprobs:
            self._send(job, StreamDelta(text, logprobs))

    def _end(
        self,
        slot: _Slot,
        finish_reason: str,
        text: str = "",
        logprobs: tuple[TokenLogprob, ...] = (),
        error: EdgeftError | None = None,
    ) -> None:
        del self._slots[slot.number]
        self._last_used[slot.number] = time.perf_counter()
        slot.sampler.close()
        last = StreamDelta(text, logprobs, finish_reason, error, slot.stops.hit)
        self._finish(slot.job, last)

    def _fail(self, error: EdgeftError) -> None:
        for slot in list(self._slots.values()):
            self._end(slot, "error", error=error)

    def _free(self) -> None:
        for steps in self._open_embeddings:
            steps.close()
        self._sequences.close()
        if self._draft_model:
            self._draft_model.close()
        self.runtime.close()


def choose_sequence(
    shared: Sequence[int],
    running: Collection[int],
    last_used: Sequence[float],
    copy_cost: int,
) -> tuple[int, int | None]:
    """The free sequence for a prompt, and the sequence to copy its beginning from, if any.

    `shared`: tokens that each sequence has in common with the prompt. `running`: numbers of the
    sequences that are not free. `last_used`: seconds, of each sequence. `copy_cost`: tokens that are
    read in the time of a copy. llama.cpp computes only neighbours together, so a sequence beside
    running ones is best; among those the one with the longest common beginning of at least
    `MIN_SHARED_TOKENS`; else the one that was unused for longest.
    """

    def fitness(number: int) -> tuple[float, ...]:
        neighbours = (number - 1 in running) + (number + 1 in running)
        reusable = shared[number] if shared[number] >= MIN_SHARED_TOKENS else 0
        return neighbours, reusable, -last_used[number]

    number = max((n for n in range(len(shared)) if n not in running), key=fitness)
    best = max(range(len(shared)), key=shared.__getitem__)
    return number, best if shared[best] > shared[number] + copy_cost else None
