"""Answers one at a time, of any runtime: an honest queue where the engine cannot do more."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from edgeft.errors import EdgeftError
from edgeft.records import Limits, Token
from edgeft.runtimes.protocol import Runtime
from edgeft.server.engine import Engine, Worker
from edgeft.server.jobs import Event, Job, StopText


class OneByOne(Engine):
    can = frozenset({"top_k", "min_p", "ignore_eos"})

    def __init__(self, name: str, runtime: Runtime, queue: int, worker: Worker) -> None:
        super().__init__(name, runtime, queue, worker)
        self._job: Job | None = None
        self._stream: Iterator[Token] = iter(())
        self._stops = StopText(())
        worker.engines.append(self)

    def _jobs(self) -> list[Job]:
        return [self._job] if self._job else []

    def _compute(self) -> None:
        job = self._job or self._take()
        if job is None:
            return
        if job.cancelled:
            self._leave(job, "cancelled")
            return
        token = next(self._stream, None)
        if token is None:
            most = min(job.want.max_tokens, self.runtime.context - len(job.want.ids))
            self._leave(job, "length" if job.new >= most else "stop", self._stops.rest())
            return
        job.first = job.first or token.seconds
        job.new += 1
        text = self._stops.push(token.text)
        if self._stops.hit:
            self._leave(job, "stop", text)
        elif job.new == job.want.max_tokens or len(job.want.ids) + job.new > self.runtime.context:
            self._leave(job, "length", text + self._stops.rest())
        elif text:
            self._tell(job, Event(text))

    def _take(self) -> Job | None:
        job = self._job = self._next()
        if job:
            want, how = job.want, job.want.sampling
            limits = Limits(
                max_tokens=want.max_tokens, temperature=how.temperature, top_p=how.top_p,
                top_k=how.top_k, min_p=how.min_p, seed=how.seed, ignore_eos=want.ignore_eos,
            )  # fmt: skip
            self._stream = self.runtime.stream(want.ids, limits)
            self._stops = StopText(want.stop)
        return job

    def _leave(
        self, job: Job, finish: str, text: str = "", error: EdgeftError | None = None
    ) -> None:
        self._job = None
        with contextlib.suppress(AttributeError):
            self._stream.close()  # type: ignore[attr-defined]
        self._end(job, finish, text, error=error)

    def _fail(self, error: EdgeftError) -> None:
        if self._job:
            self._leave(self._job, "error", error=error)

    def _free(self) -> None:
        self.runtime.close()
