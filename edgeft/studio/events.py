"""The jobs of a workspace -> server-sent events, for a page that stays up to date.

GET /events             `jobs`: the newest jobs, whenever one of them changed
GET /events?job=3       also `lines`: new lines of the job's progress, and `job`: its state and memory

The id of `lines` is the byte offset behind them: a browser that comes back goes on there.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse

from edgeft.errors import InputError
from edgeft.studio.context import Studio
from edgeft.studio.job_view import job_brief
from edgeft.studio.views import words_of
from edgeft.studio.words import Words

INTERVAL_S = 0.5
KEEP_ALIVE_S = 15.0
"""between two comments where nothing happens: a proxy then keeps the connection"""
NEWEST = 12
"""jobs that are changed"""


class Events:
    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.ended = asyncio.Event()
        """set when the server ends: streams are then closed"""

    async def stream(self, request: Request) -> StreamingResponse:
        query, last = request.query_params, request.headers.get("last-event-id", "")
        number, offset = _number(query.get("job", "")), _number(last or query.get("offset", ""))
        events = self._events(words_of(request), number, offset or 0)
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)

    async def _events(self, words: Words, number: int | None, offset: int) -> AsyncIterator[str]:
        last: dict[str, Any] = {}
        silent = 0.0
        while not self.ended.is_set():
            changed = False
            facts, offset = await asyncio.to_thread(self._facts, words, number, offset)
            for name, value in facts.items():
                if value != last.get(name) or name == "lines":
                    last[name] = value
                    changed = True
                    id_line = f"id: {offset}\n" if name == "lines" else ""
                    yield f"event: {name}\n{id_line}data: {json.dumps(value)}\n\n"
            silent = 0.0 if changed else silent + INTERVAL_S
            if silent >= KEEP_ALIVE_S:
                silent = 0.0
                yield ": still here\n\n"
            if "lines" not in facts:
                await asyncio.sleep(INTERVAL_S)

    def _facts(self, words: Words, number: int | None, offset: int) -> tuple[dict[str, Any], int]:
        jobs = self.studio.jobs.all()
        facts: dict[str, Any] = {
            "jobs": {
                "text": self.studio.queue_text(words, jobs),
                "jobs": [job_brief(job) for job in jobs[:NEWEST]],
            }
        }
        if number is not None:
            try:
                job = self.studio.jobs.get(number)
            except InputError:
                return facts | {"job": {"state": "forgotten"}}, offset
            lines, offset = job.lines(offset)
            if lines:
                facts["lines"] = lines
            facts["job"] = {
                "state": job.state,
                "memory": job.memory(),
                "log": job.text("log.txt")[-8000:],
            }
        return facts, offset


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) < 16 else None
