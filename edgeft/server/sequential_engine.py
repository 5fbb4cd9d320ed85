"""Takes one job at a time, gives its answer by any runtime's `stream`: for runtimes without batches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from edgeft.errors import EdgeftError
from edgeft.records import Limits, Token
from edgeft.runtimes.protocol import Runtime
from edgeft.server.engine import Engine, Worker
from edgeft.server.jobs import Job, StopText, StreamDelta


class SequentialEngine(Engine):
    """Supports grammars where the runtime has a method `matcher`."""

    supports = frozenset({"top_k", "min_p", "ignore_eos"})

    def __init__(self, name: str, runtime: Runtime, max_waiting: int, worker: Worker) -> None:
        super().__init__(name, runtime, max_waiting, worker)
        self._matcher = getattr(runtime, "matcher", None)
        if self._matcher:
            self.supports |= {"grammar"}
        self._job: Job | None = None
        self._stream: Iterator[Token] = iter(())
        self._stops = StopText(())
        worker.engines.append(self)

    def check(self, job: Job) -> None:
        if self._matcher and job.request.sampling.grammar:
            self._matcher(job.request.sampling.grammar)

    def _running_jobs(self) -> list[Job]:
        return [self._job] if self._job else []

    def _step(self) -> None:
        job = self._job or self._start_next()
        if job is None:
            return
        if job.cancelled:
            self._end(job, "cancelled")
            return
        request = job.request
        token = next(self._stream, None)
        if token is None:
            most = min(request.max_tokens, self.runtime.context - len(request.prompt_ids))
            reason = "length" if job.new_tokens >= most else "stop"
            self._end(job, reason, self._stops.rest())
            return
        job.first_token_s = job.first_token_s or token.seconds
        job.new_tokens += 1
        length = len(request.prompt_ids) + job.new_tokens
        text = self._stops.push(token.text)
        if self._stops.hit:
            self._end(job, "stop", text)
        elif job.new_tokens == request.max_tokens or length > self.runtime.context:
            self._end(job, "length", text + self._stops.rest())
        elif text:
            self._send(job, StreamDelta(text))

    def _start_next(self) -> Job | None:
        job = self._job = self._next_waiting()
        if job:
            request, sampling = job.request, job.request.sampling
            limits = Limits(
                max_tokens=request.max_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                min_p=sampling.min_p,
                seed=sampling.seed,
                ignore_eos=request.ignore_eos,
                grammar=sampling.grammar,
            )
            self._stream = self.runtime.stream(request.prompt_ids, limits)
            self._stops = StopText(request.stop)
        return job

    def _end(
        self, job: Job, finish_reason: str, text: str = "", error: EdgeftError | None = None
    ) -> None:
        self._job = None
        with contextlib.suppress(AttributeError):
            self._stream.close()  # type: ignore[attr-defined]
        self._finish(job, StreamDelta(text, (), finish_reason, error, self._stops.hit))

    def _fail(self, error: EdgeftError) -> None:
        if self._job:
            self._end(self._job, "error", error=error)

    def _free(self) -> None:
        self.runtime.close()
