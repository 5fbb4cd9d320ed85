"""How answers go out: whole, as server-sent events, or as a refusal.

Jobs are cancelled as soon as nobody listens to them any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

from edgeft.errors import EdgeftError, InputError, ResourceError
from edgeft.server import ask
from edgeft.server.jobs import Busy, Event, Job
from edgeft.server.replies import Shape, together, usage
from edgeft.web.guard import Receive, Scope, Send, error_body

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

PATIENCE = 30.0
"""seconds for a chunk to be taken"""


class Refusal(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, code: str, retry: int | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.retry = status, message, code, retry

    @property
    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        kind = "rate_limit_exceeded" if self.status == 429 else kind
        return error_body(self.message, self.code, kind)


def left() -> Refusal:
    """Which nobody reads, but the log and the metrics have it."""
    return Refusal(499, "the client has left", "client_left")


def refusal(error: EdgeftError) -> Refusal:
    match error:
        case Busy():
            return Refusal(429, str(error), "queue_full", error.seconds)
        case ask.TooLong():
            return Refusal(400, str(error), "context_length_exceeded")
        case InputError():
            return Refusal(400, str(error), "invalid_value")
        case ResourceError():
            return Refusal(503, str(error), "unavailable")
    return Refusal(500, str(error), "engine_error")


async def _gone(receive: Receive) -> None:
    """Returns when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


@contextlib.asynccontextmanager
async def watched(receive: Receive, jobs: Sequence[Job] = ()) -> AsyncIterator[asyncio.Event]:
    """Cancel the jobs as soon as nobody listens any more, which sets the event."""
    gone = asyncio.Event()

    def leave(watch: asyncio.Future[None]) -> None:
        if not watch.cancelled():
            gone.set()
        for job in jobs:
            job.cancel()

    watch = asyncio.ensure_future(_gone(receive))
    watch.add_done_callback(leave)
    try:
        yield gone
    finally:
        watch.cancel()
        for job in jobs:
            job.cancel()


async def gather(
    request: Request, jobs: Sequence[Job], queue: asyncio.Queue[tuple[int, Event]]
) -> list[list[Event]]:
    events: list[list[Event]] = [[] for _ in jobs]
    running = len(jobs)
    async with watched(request.receive, jobs) as gone:
        while running:
            index, event = await queue.get()
            events[index].append(event)
            running -= bool(event.finish)
    if gone.is_set():
        raise left()
    return events


def whole(
    jobs: Sequence[Job],
    prompts: int,
    shape: Shape,
    events: list[list[Event]],
    echoed: Sequence[str],
) -> Response:
    from starlette.responses import JSONResponse

    choices = []
    for index, one in enumerate(map(together, events)):
        if one.error:
            raise refusal(one.error)
        if one.finish == "cancelled":
            raise Refusal(503, "the answer was cancelled", "cancelled")
        text = echoed[index] + one.text if echoed else one.text
        choices.append(shape.choice(index, Event(text, one.tokens, one.finish)))
    return JSONResponse(shape.whole(choices, usage(jobs, prompts)))


async def chunks(
    jobs: Sequence[Job],
    queue: asyncio.Queue[tuple[int, Event]],
    shape: Shape,
    echoed: Sequence[str],
    use: Callable[[], dict[str, Any]] | None,
) -> AsyncIterator[bytes]:
    """Server-sent events; what came while the client was slow goes out together."""
    more: dict[str, Any] = {"usage": None} if use else {}
    for index in range(len(jobs)):
        if first := shape.first(index):
            yield shape.data(first, **more)
        if echoed:
            yield shape.data([shape.part(index, Event(echoed[index]))], **more)
    running = len(jobs)
    while running:
        ready = [await queue.get()]
        while not queue.empty():
            ready.append(queue.get_nowait())
        parts = []
        for index, event in ready:
            running -= bool(event.finish)
            if event.error or event.finish == "cancelled":
                error = event.error or ResourceError("the answer was cancelled")
                body = json.dumps(refusal(error).body, ensure_ascii=False)
                parts.append(f"data: {body}\n\n".encode("utf-8", "replace"))
            else:
                parts.append(shape.data([shape.part(index, event)], **more))
        yield b"".join(parts)
    end = shape.data([], usage=use()) if use else b""
    yield end + b"data: [DONE]\n\n"


class Stream:
    """A response of server-sent events that cancels its jobs when the client goes."""

    def __init__(
        self, chunks: AsyncIterator[bytes], jobs: Sequence[Job], finished: Callable[[], None]
    ) -> None:
        self.chunks, self.jobs, self.finished = chunks, jobs, finished

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
        ]
        async with watched(receive, self.jobs):
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            with contextlib.suppress(TimeoutError):
                async for chunk in self.chunks:
                    async with asyncio.timeout(PATIENCE):
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        self.finished()
