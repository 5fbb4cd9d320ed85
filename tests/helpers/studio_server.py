"""A studio on a free port, with a fake `edgeft` behind its jobs, and a client for it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft.cli._forms import commands
from edgeft.studio.app import studio_app
from edgeft.studio.context import Studio
from edgeft.studio.jobs import Job, Jobs
from edgeft.studio.render import Renderer
from edgeft.studio.runner import Runner
from edgeft.studio.workspace import Workspace
from edgeft.web.http_server import listen, uvicorn_server
from helpers import fake_edgeft

FAKE = (sys.executable, "-IS", str(fake_edgeft.__file__))
MAX_UPLOAD = 1_000_000


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


@dataclass(frozen=True)
class Server:
    studio: Studio
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def root(self) -> Path:
        return self.studio.root

    def ask(
        self, method: str, path: str, body: bytes = b"", key: bool = True, **headers: str
    ) -> Answer:
        """One request with this page's Origin, and its key unless `key` is off."""
        sent = {"origin": self.url, "content-type": "application/json"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        if key:
            sent["cookie"] = f"edgeft-studio-{self.port}={self.studio.key}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            connection.request(method, path, body or None, {k: v for k, v in sent.items() if v})
            response = connection.getresponse()
            text = response.read().decode()
            named = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, named, text)

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, **headers)

    def post(self, path: str, value: Any = None) -> Answer:
        return self.ask("POST", path, json.dumps(value or {}).encode())

    def start(self, page: str, form: str, **values: Any) -> int:
        """The number of a new job."""
        answer = self.post("/api/jobs", {"page": page, "form": form, "values": values})
        assert answer.status == 201, answer.text
        number: int = answer.json["id"]
        return number

    def wait(self, number: int, until: Callable[[Job], bool] = lambda job: job.has_ended) -> Job:
        for _ in range(500):
            if until(job := self.studio.jobs.get(number)):
                return job
            time.sleep(0.02)
        raise AssertionError(f"job {number} is still {job.state}: {job.text('log.txt')}")


@contextlib.contextmanager
def serving_studio(
    root: Path, program: tuple[str, ...] = FAKE, jobs: bool = True
) -> Iterator[Server]:
    """The current folder is the workspace meanwhile, as `studio` makes it."""
    workspace = Workspace(root)
    store = Jobs(workspace.studio / "jobs")
    studio = Studio(workspace, store, commands(), workspace.key(), MAX_UPLOAD, Renderer())
    with (
        contextlib.chdir(workspace.root),
        contextlib.closing(listen("127.0.0.1", 0)) as listening,
        contextlib.ExitStack() as stack,
    ):
        port = listening.getsockname()[1]
        app, events = studio_app(studio, port)
        uvicorn = uvicorn_server(app, 1)
        thread = threading.Thread(
            target=lambda: asyncio.run(uvicorn.serve(sockets=[listening])), daemon=True
        )
        thread.start()
        if jobs:
            flags = (lambda words: ()) if program == FAKE else studio.flags
            stack.enter_context(Runner(store, workspace.root, program, flags))
        server = Server(studio, port)
        try:
            yield server
        finally:
            for job in store.all() if jobs else ():
                store.cancel(job.id)
                server.wait(job.id)
            events.ended.set()
            uvicorn.should_exit = True
            thread.join()
