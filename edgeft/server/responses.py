"""Takes the deltas of running jobs, gives HTTP responses: whole, as server-sent events, or an error.

Jobs are cancelled as soon as their client has closed the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgeft.errors import EdgeftError, InputError, ResourceError, TooLong
from edgeft.server.jobs import Busy, Job, StreamDelta
from edgeft.server.openai_objects import CompletionObjects, event, joined, timings, usage
from edgeft.server.schemas import StreamOptions
from edgeft.web.guard import Receive, Scope, Send, error_body

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

SEND_TIMEOUT_S = 30.0
"""for a client to take one chunk"""
Deltas = asyncio.Queue[tuple[int, StreamDelta]]
"""(index of the job, what it sent)"""


class Refusal(Exception):
    """A request that is answered with an error."""

    def __init__(
        self, status: int, message: str, code: str, retry_s: int | None = None, **facts: int
    ) -> None:
        """`facts`: further fields of the error's object."""
        super().__init__(message)
        self.status, self.message, self.code, self.retry_s = status, message, code, retry_s
        self.facts = facts

    @property
    def body(self) -> dict[str, Any]:
        error_type = "invalid_request_error" if self.status < 500 else "server_error"
        error_type = "rate_limit_exceeded" if self.status == 429 else error_type
        body = error_body(self.message, self.code, error_type)
        body["error"] |= self.facts
        return body


def client_left() -> Refusal:
    """Nobody reads this one; the log and the metrics count it."""
    return Refusal(499, "the client has left", "client_left")


def refusal_for(error: EdgeftError) -> Refusal:
    """The HTTP status and code of an error."""
    match error:
        case Busy():
            return Refusal(429, str(error), "queue_full", error.seconds)
        case TooLong(tokens=tokens, context=context):
            # The two numbers are named as llama-server names them.
            facts = {"n_prompt_tokens": tokens, "n_ctx": context}
            return Refusal(400, str(error), "context_length_exceeded", **facts)
        case InputError():
            return Refusal(400, str(error), "invalid_value")
        case ResourceError():
            return Refusal(503, str(error), "unavailable")
    return Refusal(500, str(error), "engine_error")


async def _disconnected(receive: Receive) -> None:
    """Returns when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


@contextlib.asynccontextmanager
async def cancelled_on_disconnect(
    receive: Receive, jobs: Sequence[Job] = ()
) -> AsyncIterator[asyncio.Event]:
    """Cancel the jobs at the end, or as soon as the client has left, which sets the event."""
    has_left = asyncio.Event()

    def cancel(watcher: asyncio.Future[None]) -> None:
        if not watcher.cancelled():
            has_left.set()
        for job in jobs:
            job.cancel()

    watcher = asyncio.ensure_future(_disconnected(receive))
    watcher.add_done_callback(cancel)
    try:
        yield has_left
    finally:
        watcher.cancel()
        for job in jobs:
            job.cancel()


async def collected(
    request: Request, jobs: Sequence[Job], queue: Deltas
) -> list[list[StreamDelta]]:
    """All deltas of each job; Refusal where the client leaves before the end."""
    deltas: list[list[StreamDelta]] = [[] for _ in jobs]
    running = len(jobs)
    async with cancelled_on_disconnect(request.receive, jobs) as has_left:
        while running:
            index, delta = await queue.get()
            deltas[index].append(delta)
            running -= bool(delta.finish_reason)
    if has_left.is_set():
        raise client_left()
    return deltas


def whole_answer(
    jobs: Sequence[Job],
    prompts: int,
    objects: CompletionObjects,
    deltas: list[list[StreamDelta]],
    echoed: Sequence[str],
) -> dict[str, Any]:
    """OpenAI's object of an answer. `echoed`: a text before each answer, or nothing. Refusal where an
    answer ended in an error."""
    choices = []
    for index, answer in enumerate(map(joined, deltas)):
        if answer.error:
            raise refusal_for(answer.error)
        if answer.finish_reason == "cancelled":
            raise Refusal(503, "the answer was cancelled", "cancelled")
        text = echoed[index] + answer.text if echoed else answer.text
        choices.append(objects.choice(index, replace(answer, text=text)))
    return objects.whole(choices, usage=usage(jobs, prompts), timings=timings(jobs))


async def chunks(
    jobs: Sequence[Job],
    queue: Deltas,
    objects: CompletionObjects,
    echoed: Sequence[str],
    prompts: int,
    options: StreamOptions,
    has_timings: bool = False,
) -> AsyncIterator[list[dict[str, Any]]]:
    """OpenAI's chunks of an answer; those that came while the client was slow are given together.
    `has_timings`: every chunk of text has the times so far."""

    def more() -> dict[str, Any]:
        if options.continuous_usage_stats:
            return {"usage": usage(jobs, prompts)}
        return {"usage": None} if options.include_usage else {}

    def times() -> dict[str, Any]:
        return {"timings": timings(jobs)} if has_timings else {}

    for index in range(len(jobs)):
        if opening := objects.opening(index):
            yield [objects.chunk(opening, **more())]
        if echoed:
            echo = objects.choice(index, StreamDelta(echoed[index]))
            yield [objects.chunk([echo], **more())]
    running = len(jobs)
    while running:
        ready = [await queue.get()]
        while not queue.empty():
            ready.append(queue.get_nowait())
        running -= sum(bool(delta.finish_reason) for _, delta in ready)
        parts = (
            _progress(objects, index, jobs[index], delta.read_tokens, times())
            if delta.read_tokens is not None
            else _chunk(objects, index, delta, more() | times())
            for index, delta in ready
        )
        yield [part for part in parts if part]
    if options.include_usage:
        yield [objects.chunk([], usage=usage(jobs, prompts), timings=timings(jobs))]


def _chunk(
    objects: CompletionObjects, index: int, delta: StreamDelta, more: dict[str, Any]
) -> dict[str, Any] | None:
    """None: nothing can be sent yet."""
    if delta.error or delta.finish_reason == "cancelled":
        return refusal_for(delta.error or ResourceError("the answer was cancelled")).body
    choice = objects.chunk_choice(index, delta)
    return objects.chunk([choice], **more) if choice else None


def _progress(
    objects: CompletionObjects, index: int, job: Job, read: int, times: dict[str, Any]
) -> dict[str, Any]:
    """How much of a prompt was read, in llama-server's terms."""
    progress = {
        "total": len(job.request.prompt_ids),
        "cache": job.cached_tokens,
        "processed": read,
        "time_ms": round(1000 * (time.perf_counter() - job.created)),
    }
    choice = objects.empty_choice(index)
    return objects.chunk([choice], prompt_progress=progress, **times)


def json_response(value: Any) -> Response:
    """Of a value that JSON has."""
    from starlette.responses import JSONResponse

    return JSONResponse(value)


async def server_sent(batches: AsyncIterator[list[dict[str, Any]]]) -> AsyncIterator[bytes]:
    """Chunks as OpenAI's stream."""
    async for batch in batches:
        if batch:
            yield b"".join(map(event, batch))
    yield b"data: [DONE]\n\n"


class EventStream:
    """A streamed response that cancels its jobs when the client leaves."""

    def __init__(
        self,
        events: AsyncIterator[bytes],
        jobs: Sequence[Job],
        on_end: Callable[[], None],
        media_type: str = "text/event-stream; charset=utf-8",
    ) -> None:
        self.events, self.jobs, self.on_end = events, jobs, on_end
        self.media_type = media_type

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [
            (b"content-type", self.media_type.encode()),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
        ]
        try:
            async with cancelled_on_disconnect(receive, self.jobs):
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                with contextlib.suppress(TimeoutError):
                    async for event in self.events:
                        body = {"type": "http.response.body", "body": event, "more_body": True}
                        async with asyncio.timeout(SEND_TIMEOUT_S):
                            await send(body)
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self.on_end()
