"""Open the artifacts, listen, serve until a signal, and end in order."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgeft.errors import InputError
from edgeft.formats import format_of
from edgeft.progress import say
from edgeft.runtimes.gguf import GGUFRuntime
from edgeft.runtimes.protocol import open_runtime
from edgeft.server.batching import Batching
from edgeft.server.engine import Engine, Post, Worker
from edgeft.server.options import ServeOptions
from edgeft.web.guard import Rules
from edgeft.web.http_server import listen, require_serve_extra, uvicorn_server


def serve(options: ServeOptions) -> None:
    """Returns after SIGTERM or SIGINT."""
    options.check()
    require_serve_extra()
    listening = contextlib.closing(listen(options.host, options.port))
    with listening as bound, engines(options) as opened:
        asyncio.run(_serve(options, opened, bound))


@contextlib.contextmanager
def engines(options: ServeOptions) -> Iterator[list[Engine]]:
    """One per artifact; closed in the end."""
    worker = Worker()
    with contextlib.ExitStack() as stack:
        stack.callback(worker.close)
        opened: list[Engine] = []
        for name, path in names(options.artifacts).items():
            # Repacked weights are multiplied with other kernels from four rows on.
            repack = not (options.isolate and format_of(path).name in ("gguf", "gptq"))
            runtime = open_runtime(path, options.threads, options.context, repack=repack)
            # After what is being computed, where Ctrl-C comes in the middle of it.
            stack.callback(worker.call, runtime.close)
            engine: Engine
            if isinstance(runtime, GGUFRuntime):
                engine = Batching(
                    name, runtime, options.slots, options.queue, worker, options.isolate
                )
            else:
                from edgeft.server.turns import OneByOne

                engine = OneByOne(name, runtime, options.queue, worker)
            stack.callback(engine.close)
            opened.append(engine)
        yield opened


def names(artifacts: Sequence[Path]) -> dict[str, Path]:
    """By their files' names, with the folder's where two have the same."""
    found: dict[str, Path] = {}
    for path in artifacts:
        stem = path.stem if path.suffix == ".gguf" else path.name
        name = stem if stem not in found else f"{path.absolute().parent.name}/{stem}"
        if name in found:
            raise InputError(f"two artifacts are called {name}", "rename one of them")
        found[name] = path
    return found


async def _serve(options: ServeOptions, opened: list[Engine], bound: socket.socket) -> None:
    server = listener(options, opened)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        server.should_exit = True
        for engine in opened:
            loop.call_later(options.grace, engine.cancel_all)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    host, port = bound.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    listed = ", ".join(engine.name for engine in opened)
    say(f"serving {listed} on http://{shown}:{port} (Ctrl-C ends it)")
    await server.serve(sockets=[bound])


def listener(options: ServeOptions, opened: Sequence[Engine]) -> Any:
    """The uvicorn.Server of these engines, whose events come to the running loop."""
    from edgeft.server.api import Api, Options

    # As browsers send them.
    hosts = {name.lower() for name in (options.host, socket.gethostname(), *options.allow_host)}
    origins = {origin.lower() for origin in options.cors}
    rules = Rules(options.key, frozenset(hosts), frozenset(origins))
    how = Options(rules, options.max_tokens, options.log_prompts, options.quiet)
    for engine in opened:
        engine.post = poster(asyncio.get_running_loop())
    return uvicorn_server(Api(opened, how).app(), options.grace)


def poster(loop: asyncio.AbstractEventLoop) -> Post:
    """Events go to their sinks in the loop, all of a step at once."""

    def deliver(events: Any) -> None:
        for sink, event in events:
            sink(event)

    def post(events: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
            loop.call_soon_threadsafe(functools.partial(deliver, events))

    return post
