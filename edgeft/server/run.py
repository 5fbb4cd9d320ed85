"""Takes `ServeOptions`, opens the artifacts and serves them until SIGTERM or SIGINT.

SIGHUP reads keys and changed artifacts again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeft.errors import EdgeftError, FormatError, InputError, require
from edgeft.progress import say
from edgeft.runtimes.draft_model import DraftModel
from edgeft.runtimes.gguf import GGUFRuntime
from edgeft.runtimes.protocol import open_runtime
from edgeft.server.batching_engine import BatchingEngine
from edgeft.server.engine import Deliver, Engine, Worker
from edgeft.server.jobs import Callback, StreamDelta
from edgeft.server.keys import Keys
from edgeft.server.memory import fit_memory
from edgeft.server.model_facts import model_facts
from edgeft.server.options import ServeOptions
from edgeft.server.reload import Reloader, RunningRequests, check_watchable
from edgeft.server.sequential_engine import SequentialEngine
from edgeft.web.guard import Rules
from edgeft.web.http_server import listen, require_serve_extra, uvicorn_server


def serve(options: ServeOptions) -> None:
    """Returns after SIGTERM or SIGINT."""
    options.check()
    model_aliases(options.alias, model_names(options.artifacts))
    require_serve_extra()
    require("llguidance", "serve")
    keys = Keys(options.keys())
    if options.watch:
        check_watchable(options.artifacts)
    if options.max_memory:
        options = fit_memory(options, options.max_memory)
    listener = contextlib.closing(listen(options.host, options.port))
    with listener as listening, engines(options) as opened:
        asyncio.run(_serve(options, opened, keys, listening))


@contextlib.contextmanager
def engines(options: ServeOptions) -> Iterator[list[Engine]]:
    """One engine per artifact, which share a thread; those in the list are closed in the end."""
    opened: list[Engine] = []
    with contextlib.closing(Worker()) as worker, contextlib.ExitStack() as stack:
        for index, (name, path) in enumerate(model_names(options.artifacts).items()):
            opened.append(open_engine(options, worker, name, path))
            stack.callback(_close, opened, index)
        yield opened


def _close(opened: list[Engine], index: int) -> None:
    opened[index].close()  # a reload may have put another one there


def open_engine(options: ServeOptions, worker: Worker, name: str, path: Path) -> Engine:
    """The engine of one artifact."""
    runtime = open_runtime(
        path, options.threads, options.context, kv_type=options.kv_type,
        batch_invariant=options.batch_invariant,
    )  # fmt: skip
    with contextlib.ExitStack() as on_error:
        # In the thread: Ctrl-C may come while it computes with this runtime.
        on_error.callback(worker.call, runtime.close)
        facts = model_facts(path)
        engine: Engine
        if isinstance(runtime, GGUFRuntime):
            draft_model = None
            if options.draft:
                draft_model = open_draft(options, worker, options.draft, runtime)
                on_error.callback(worker.call, draft_model.close)
            engine = BatchingEngine(
                name, runtime, options.slots, options.queue, worker, options.batch_invariant,
                grows=not options.max_memory, speculate=options.speculate == "ngram",
                draft_model=draft_model,
            )  # fmt: skip
        elif options.draft or options.speculate != "none":
            problem = f"{path}: only llama.cpp can speculate"
            raise FormatError(problem, "without --speculate and --draft")
        else:
            engine = SequentialEngine(name, runtime, options.queue, worker)
        engine.facts = facts
        on_error.pop_all()
    return engine


def open_draft(
    options: ServeOptions, worker: Worker, path: Path, target: GGUFRuntime
) -> DraftModel:
    """The model of `--draft`; InputError where it cannot guess for `target`."""
    runtime = open_runtime(path, options.threads, target.context)
    try:
        if not isinstance(runtime, GGUFRuntime):
            raise FormatError(f"{path} does not run on llama.cpp", "--draft FILE.gguf")
        # In the thread, where everything is computed.
        return worker.call(lambda: DraftModel(runtime, target, grows=not options.max_memory))
    except BaseException:
        worker.call(runtime.close)
        raise


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


def model_aliases(aliases: Sequence[str], names: Mapping[str, Path]) -> dict[str, str]:
    """`--alias` -> {other name: name of the model}; * stands for every name that no model has.

    InputError for an alias of nothing that is served."""
    models: dict[str, str] = {}
    for alias in aliases:
        other, _, model = alias.rpartition("=")
        for name, path in names.items():
            if model in (name, str(path)):
                models[other] = name
                break
        else:
            problem = f"--alias {alias!r} names no served artifact"
            raise InputError(problem, f"NAME=MODEL, with MODEL one of {', '.join(names)}")
        if not other or other in names:
            raise InputError(f"--alias {alias!r} needs a name that no artifact has", "NAME=MODEL")
    return models


async def _serve(
    options: ServeOptions, opened: list[Engine], keys: Keys, listening: socket.socket
) -> None:
    server, reloader = http_server(options, opened, keys)
    loop = asyncio.get_running_loop()
    terminal = sys.stderr.isatty()

    def cancel_all() -> None:
        for engine in (*opened, *reloader.retiring):
            engine.cancel_all()

    def stop() -> None:
        server.should_exit = True
        loop.call_later(options.shutdown_timeout, cancel_all)

    def hang_up() -> None:
        if terminal and not sys.stderr.isatty():  # it was closed
            stop()
            return
        try:
            keys.replace(options.keys())
        except EdgeftError as error:
            say(f"the new keys are refused, the old ones hold: {error}")
        reloader.reload()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGHUP, hang_up)
    host, port = listening.getsockname()[:2]
    shown_host = f"[{host}]" if ":" in host else host
    listed = ", ".join(engine.name for engine in opened)
    say(f"serving {listed} on http://{shown_host}:{port} (Ctrl-C ends it)")
    await server.serve(sockets=[listening])
    await reloader.close()


def http_server(
    options: ServeOptions, opened: list[Engine], keys: Keys | None = None
) -> tuple[Any, Reloader]:
    """The uvicorn.Server of these engines, whose deltas come to the running loop, and what exchanges
    the engines in the list."""
    from edgeft.server.api import Api, ApiOptions

    keys = keys or Keys(options.keys())
    # Browsers send both in lower case.
    hosts = {name.lower() for name in (options.host, socket.gethostname(), *options.allow_host)}
    origins = {origin.lower() for origin in options.cors}
    rules = Rules(keys.authorize, frozenset(hosts), frozenset(origins))
    paths = model_names(options.artifacts)
    aliases = model_aliases(options.alias, paths)
    api_options = ApiOptions(rules, options.max_tokens, options.log_prompts, options.quiet, aliases)
    deliver = delivery_to(asyncio.get_running_loop())
    for engine in opened:
        engine.deliver = deliver
    requests = RunningRequests(Api(opened, api_options, keys).app())
    open_ = functools.partial(open_engine, options, opened[0].worker)
    reloader = Reloader(opened, paths, open_, requests, deliver)
    if options.watch:
        reloader.watch()
    return uvicorn_server(requests, options.shutdown_timeout), reloader


def delivery_to(loop: asyncio.AbstractEventLoop) -> Deliver:
    """Calls the callbacks in the loop, all those of a step at once."""

    def call(deltas: list[tuple[Callback, StreamDelta]]) -> None:
        for callback, delta in deltas:
            callback(delta)

    def deliver(deltas: list[tuple[Callback, StreamDelta]]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
            loop.call_soon_threadsafe(functools.partial(call, deltas))

    return deliver
