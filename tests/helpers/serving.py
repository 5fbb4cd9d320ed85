"""A server of tiny models in a thread, and requests to it that no client library would send."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft.server.engine import Engine
from edgeft.server.options import ServeOptions
from edgeft.server.run import engines, http_server
from edgeft.web.http_server import listen


@dataclass(frozen=True)
class Served:
    port: int
    engines: list[Engine]
    reload: Callable[[], object]
    """begins what SIGHUP does"""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, dict[str, str]]:
        """(status, body, headers); a dict goes out as JSON, bytes as they are."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        base = {"content-type": "application/json"} if body is not None else {}
        try:
            connection.request(method, path, data, base | (headers or {}))
            answer = connection.getresponse()
            return answer.status, answer.read(), dict(answer.getheaders())
        finally:
            connection.close()

    def json(self, path: str, body: Any, headers: dict[str, str] | None = None) -> Any:
        status, data, _ = self.ask("POST", path, body, headers)
        assert status == 200, data
        return json.loads(data)


@contextlib.contextmanager
def running(*artifacts: Path, **how: Any) -> Iterator[Served]:
    options = ServeOptions(artifacts, port=0, threads=1, quiet=True, **how)
    options.check()
    with listen(options.host, 0) as bound, engines(options) as opened:
        servers: list[Any] = []
        ready = threading.Event()

        async def serve() -> None:
            server, reloader = http_server(options, opened)
            servers.append((server, reloader, asyncio.get_running_loop()))
            ready.set()
            await server.serve(sockets=[bound])
            await reloader.close()

        thread = threading.Thread(target=lambda: asyncio.run(serve()))
        thread.start()
        assert ready.wait(30)
        try:
            server, reloader, loop = servers[0]
            yield Served(
                bound.getsockname()[1], opened, lambda: loop.call_soon_threadsafe(reloader.reload)
            )
        finally:
            for engine in opened:
                engine.cancel_all()
            server.should_exit = True
            thread.join(30)


def exported(base: Path, out: Path, *quants: str) -> list[Path]:
    """The artifacts of a base, without their proof."""
    from edgeft.merge.view import open_merged
    from helpers.converting import convert

    made = []
    for quant in quants:
        out.mkdir(parents=True, exist_ok=True)
        convert(open_merged(base, None), out / f"{quant}.gguf", quant, threads=1)
        made.append(out / f"{quant}.gguf")
    return made
