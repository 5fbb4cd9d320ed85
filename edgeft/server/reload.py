"""Engines that serve -> engines on new files, while the old ones finish their answers: SIGHUP and `--watch`.

A new file is opened beside the old one, so both are in memory until the last request that had begun
before has its answer. A file that cannot be opened, or is not the one of its manifest, changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

from edgeft.errors import InputError
from edgeft.progress import say
from edgeft.server.engine import Deliver, Engine
from edgeft.store import check_files, manifest_path
from edgeft.web.guard import App, Receive, Scope, Send

WATCH_INTERVAL_S = 2.0
"""between two looks at the manifests"""
Stamp = tuple[tuple[str, int, int, int], ...]
"""(name, inode, size, time of change in ns) of every file"""


class RunningRequests:
    """An ASGI application that knows which of its requests are running."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._ends: set[asyncio.Event] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        end = asyncio.Event()
        self._ends.add(end)
        try:
            await self._app(scope, receive, send)
        finally:
            self._ends.discard(end)
            end.set()

    async def ended(self) -> None:
        """Returns when all requests that are running now have ended."""
        for end in list(self._ends):
            await end.wait()


class Reloader:
    """Exchanges the engines of a server, in its event loop."""

    def __init__(
        self,
        engines: list[Engine],
        paths: dict[str, Path],
        open_engine: Callable[[str, Path], Engine],
        requests: RunningRequests,
        deliver: Deliver,
    ) -> None:
        """`engines`: those that serve; a new one takes the place of the old one in this list. `paths`:
        name -> artifact."""
        self._engines, self._paths = engines, paths
        self._open, self._requests, self._deliver = open_engine, requests, deliver
        self._stamps = {name: stamp(path) for name, path in paths.items()}
        """name -> the newest file that was tried"""
        self._lock = asyncio.Lock()
        self._stopped = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.retiring: set[Engine] = set()
        """that finish the answers that they had begun"""

    def reload(self) -> None:
        """Begin to exchange the engines whose files have changed."""
        self._start(self._reload())

    def watch(self) -> None:
        """Do so whenever a complete new file is there."""
        self._start(self._watch())

    async def close(self) -> None:
        """Returns when all that was begun has ended; the requests must have ended before."""
        self._stopped.set()
        while self._tasks:
            await asyncio.gather(*self._tasks)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch(self) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), WATCH_INTERVAL_S)
                return
            await self._exchange_changed(only_complete=True)

    async def _reload(self) -> None:
        if not await self._exchange_changed():
            say("SIGHUP: no artifact has changed")

    async def _exchange_changed(self, only_complete: bool = False) -> int:
        """The number of artifacts that were tried; `only_complete`: of those with a manifest."""
        async with self._lock:
            changed = [
                name for name, old in self._stamps.items() if stamp(self._paths[name]) != old
            ]
            if only_complete:
                changed = [name for name in changed if manifest_path(self._paths[name]).is_file()]
            for name in changed:
                if not self._stopped.is_set():
                    await self._exchange(name)
            return len(changed)

    async def _exchange(self, name: str) -> None:
        path = self._paths[name]
        self._stamps[name] = stamp(path)
        try:
            await asyncio.to_thread(check_files, path)
            engine = await asyncio.to_thread(self._open, name, path)
        except Exception as error:  # noqa: BLE001  whatever it is, the old one must serve on
            told = str(error) or repr(error)
            say(f"{name}: the new file is refused, the old one serves on: {' '.join(told.split())}")
            return
        engine.deliver = self._deliver
        (index,) = [i for i, old in enumerate(self._engines) if old.name == name]
        old, self._engines[index] = self._engines[index], engine
        engine.take_counts(old)
        self.retiring.add(old)
        say(f"{name}: the new file serves, running answers finish on the old one")
        self._start(self._retire(old))

    async def _retire(self, engine: Engine) -> None:
        """A request chooses its engine before it has jobs in it: all that have begun must end."""
        await self._requests.ended()
        await asyncio.to_thread(engine.close)
        self.retiring.discard(engine)
        say(f"{engine.name}: the old file is closed")


def check_watchable(paths: Iterable[Path]) -> None:
    """InputError for an artifact without a manifest."""
    for path in paths:
        if path.exists() and not manifest_path(path).is_file():
            problem = f"{path} has no manifest, which tells --watch that a file is complete"
            raise InputError(problem, "SIGHUP reloads it")


def stamp(path: Path) -> Stamp:
    """What changes when an artifact is replaced; empty where there is none."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path, manifest_path(path)]
    return tuple(filter(None, map(_stat, files)))


def _stat(file: Path) -> tuple[str, int, int, int] | None:
    with contextlib.suppress(OSError):
        stat = file.stat()
        return file.name, stat.st_ino, stat.st_size, stat.st_mtime_ns
    return None
