"""Takes `ServeOptions`, opens the artifacts and serves them until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgeft.errors import FormatError, InputError, require
from edgeft.formats import format_of
from edgeft.progress import say
from edgeft.runtimes.gguf import GGUFRuntime
from edgeft.runtimes.protocol import open_runtime
from edgeft.server.batching_engine import BatchingEngine
from edgeft.server.engine import Deliver, Engine, Worker
from edgeft.server.jobs import Callback, StreamDelta
from edgeft.server.memory import fit_memory
from edgeft.server.options import ServeOptions
from edgeft.server.sequential_engine import SequentialEngine
from edgeft.web.guard import Rules
from edgeft.web.http_server import listen, require_serve_extra, uvicorn_server


def serve(options: ServeOptions) -> None:
    """Returns after SIGTERM or SIGINT."""
    options.check()
    require_serve_extra()
    require("llguidance", "serve")
    listener = contextlib.closing(listen(options.host, options.port))
    with listener as listening, engines(options) as opened:
        asyncio.run(_serve(options, opened, listening))


@contextlib.contextmanager
def engines(options: ServeOptions) -> Iterator[list[Engine]]:
    """One engine per artifact, which share a thread; closed in the end."""
    if options.max_memory:
        options = fit_memory(options, options.max_memory)
    worker = Worker()
    with contextlib.ExitStack() as stack:
        stack.callback(worker.close)
        opened: list[Engine] = []
        for name, path in model_names(options.artifacts).items():
            # Isolated: from four rows on, repacked weights are multiplied with other kernels.
            repack = not (options.batch_invariant and format_of(path).name in ("gguf", "gptq"))
            runtime = open_runtime(
                path, options.threads, options.context, repack=repack, kv_type=options.kv_type
            )
            # In the thread: Ctrl-C may come while it computes with this runtime.
            stack.callback(worker.call, runtime.close)
            engine: Engine
            if isinstance(runtime, GGUFRuntime):
                engine = BatchingEngine(
                    name, runtime, options.slots, options.queue, worker, options.batch_invariant,
                    grows=not options.max_memory, speculate=options.speculate == "ngram",
                )  # fmt: skip
            elif options.speculate != "none":
                raise FormatError(f"{path}: only llama.cpp can speculate", "--speculate none")
            else:
                engine = SequentialEngine(name, runtime, options.queue, worker)
            stack.callback(engine.close)
            opened.append(engine)
        yield opened


def model_names(artifacts: Sequence[Path]) -> dict[str, Path]:
    """Name of the model -> its artifact. The name is the file's, with the folder's before it where two
    files have the same."""
    named: dict[str, Path] = {}
    for path in artifacts:
        stem = path.stem if path.suffix == ".gguf" else path.name
        stem = stem.encode("utf-8", "replace").decode()  # a file name need not be UTF-8, JSON must
        name = stem if stem not in named else f"{path.absolute().parent.name}/{stem}"
        if name in named:
            raise InputError(f"two artifacts are called {name}", "rename one of them")
        named[name] = path
    return named


async def _serve(options: ServeOptions, opened: list[Engine], listening: socket.socket) -> None:
    server = http_server(options, opened)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        server.should_exit = True
        for engine in opened:
            loop.call_later(options.shutdown_timeout, engine.cancel_all)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    host, port = listening.getsockname()[:2]
    shown_host = f"[{host}]" if ":" in host else host
    listed = ", ".join(engine.name for engine in opened)
    say(f"serving {listed} on http://{shown_host}:{port} (Ctrl-C ends it)")
    await server.serve(sockets=[listening])


def http_server(options: ServeOptions, opened: Sequence[Engine]) -> Any:
    """The uvicorn.Server of these engines, whose deltas come to the running loop."""
    from edgeft.server.api import Api, ApiOptions

    # Browsers send both in lower case.
    hosts = {name.lower() for name in (options.host, socket.gethostname(), *options.allow_host)}
    origins = {origin.lower() for origin in options.cors}
    rules = Rules(options.key, frozenset(hosts), frozenset(origins))
    api_options = ApiOptions(rules, options.max_tokens, options.log_prompts, options.quiet)
    for engine in opened:
        engine.deliver = delivery_to(asyncio.get_running_loop())
    return uvicorn_server(Api(opened, api_options).app(), options.shutdown_timeout)


def delivery_to(loop: asyncio.AbstractEventLoop) -> Deliver:
    """Calls the callbacks in the loop, all those of a step at once."""

    def call(deltas: list[tuple[Callback, StreamDelta]]) -> None:
        for callback, delta in deltas:
            callback(delta)

    def deliver(deltas: list[tuple[Callback, StreamDelta]]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
            loop.call_soon_threadsafe(functools.partial(call, deltas))

    return deliver
