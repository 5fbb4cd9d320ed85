"""A function in a process of its own, with limits of time and memory -> its JSON answers.

    worker = Worker(Path("render.py"), "answer", Limits(cpu_s=1, memory=10**8))
    worker.ask(["{{ 9 ** 9 ** 9 }}"])       # Ended: "it does not end within 1 s"

What reads a stranger's file can run without end, take all memory or abort. In a process of its own that
costs one line. The process limits itself, so it ends even where its parent is killed.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib.util
import json
import marshal
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from edgeft.files import format_bytes
from edgeft.machine import kilobytes

MAX_ANSWER_BYTES = 200_000_000
LENGTH_BYTES = 8
"""before each request and answer: the number of its bytes"""
WALL_PER_CPU = 20
"""seconds of a clock per second of work: a process that waits for something ends, too"""
LIBRARIES_BYTES = 200_000_000
"""what a worker's libraries take at most, where /proc does not say it"""
NO_MEMORY = 77
"""exit code of a worker whose function raised MemoryError"""
PACKAGE_PARENT = str(Path(__file__).resolve().parents[1])
"""folder from which `edgeft` is imported; an editable installation keeps it out of sys.path"""
PR_SET_PDEATHSIG = 1
"""<linux/prctl.h>"""
START = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from edgeft import child_process; " \
        "child_process.serve(*sys.argv[2:])"  # fmt: skip
"""program of a worker; its arguments: sys.path, file, function, and the fields of `Limits`"""


@dataclass(frozen=True)
class Limits:
    cpu_s: float
    """seconds of work for one answer"""
    memory: int
    """bytes for one answer, beside the loaded libraries and mapped files"""
    memory_per_byte: int = 0
    """further bytes for each byte of the request"""


class Ended(Exception):
    """The process ended before it had answered."""

    def __init__(self, code: int, limits: Limits, errors: str) -> None:
        late = {-signal.SIGPROF: limits.cpu_s, -signal.SIGALRM: limits.cpu_s * WALL_PER_CPU}
        if code in late:
            reason = f"it does not end within {late[code]:g} s"
        elif code == NO_MEMORY:
            reason = f"it takes more than {format_bytes(limits.memory)} of memory"
        else:
            name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            reason = f"it ends the process that reads it ({name})"
        super().__init__(reason)
        self.errors = errors
        """what the process wrote to stderr, at most its last 4000 characters"""


class Worker:
    """A process that answers one request after the other. Not for several threads at a time."""

    def __init__(self, file: Path, function: str, limits: Limits) -> None:
        """`file`: a Python file that is loaded by its path; `function`: takes and gives JSON values."""
        self.limits = limits
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        arguments = (str(file), function, *map(str, astuple(limits)))
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-IS",
                "-c",
                START,
                json.dumps([*sys.path, PACKAGE_PARENT]),
                *arguments,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        _workers.add(self)

    @property
    def runs(self) -> bool:
        """Whether the process still waits for requests."""
        return self._process.poll() is None

    def ask(self, request: Any) -> Any:
        """The function's answer; Ended where a limit or a fault ended the process."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin and stdout
        try:
            with contextlib.suppress(BrokenPipeError):
                data = marshal.dumps(request)  # a tenth of JSON's time
                stdin.write(len(data).to_bytes(LENGTH_BYTES, "little") + data)
                stdin.flush()
            size = int.from_bytes(stdout.read(LENGTH_BYTES), "little")
            answer = stdout.read(size) if 0 < size <= MAX_ANSWER_BYTES else b""
        except BaseException:  # the next answer would belong to this request
            self.close(kill=True)
            raise
        if not answer or len(answer) < size:
            self.close(kill=size > MAX_ANSWER_BYTES)
            raise Ended(self._process.returncode, self.limits, self._stderr())
        return _decoded(answer)

    def close(self, kill: bool = False) -> None:
        """Ends the process: at once, or after the request that it works on."""
        if kill:
            self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        self._process.wait()

    def _stderr(self) -> str:
        with self._errors as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4000))
            return file.read().decode("utf-8", "replace")


class Pool:
    """Workers for the same function, which are kept for the next request. For any number of threads."""

    def __init__(self, file: Path, function: str, limits: Limits, size: int) -> None:
        """`size`: processes at a time; further requests wait."""
        self._new: Callable[[], Worker] = lambda: Worker(file, function, limits)
        self._size = size
        self._reset()
        os.register_at_fork(after_in_child=self._reset)  # the parent's pipes are not the child's

    def _reset(self) -> None:
        self._idle: list[Worker] = []
        self._room = threading.BoundedSemaphore(self._size)

    def ask(self, request: Any) -> Any:
        """As `Worker.ask`; a process that ended is replaced at the next request."""
        with self._room:
            worker = self._take()
            answer = worker.ask(request)
            self._idle.append(worker)
            return answer

    def _take(self) -> Worker:
        """The worker that was idle last, which has the most in its caches, or a new one."""
        with contextlib.suppress(IndexError):
            while not (worker := self._idle.pop()).runs:
                worker.close()
            return worker
        return self._new()


def end_with_parent(number: int = signal.SIGTERM) -> None:
    """In a process that another started: the kernel sends it this signal where its parent ends, even by a kill."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    parent = multiprocessing.parent_process()
    if parent and os.getppid() != parent.pid:
        os._exit(1)


@contextlib.contextmanager
def ctrl_c_ignored() -> Iterator[None]:
    """What is started within the block ignores Ctrl-C: this process ends it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_workers: weakref.WeakSet[Worker] = weakref.WeakSet()
os.register_at_fork(after_in_child=_workers.clear)


@atexit.register
def _close_all() -> None:
    for worker in list(_workers):
        worker.close(kill=True)


def serve(file: str, function: str, cpu_s: str, *memory: str) -> None:
    """The program of a worker: a request in, an answer out."""
    beside, per_byte = map(int, memory)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGPROF, signal.SIGALRM, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # ends even a loop in C
    answer = getattr(_module(file), function)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    requests = sys.stdin.buffer
    while head := requests.read(LENGTH_BYTES):
        size = int.from_bytes(head, "little")
        own = kilobytes("/proc/self/status").get("VmData", LIBRARIES_BYTES)
        _limit_memory(own + beside + size * (1 + per_byte))
        request = marshal.loads(requests.read(size))
        with _timers(float(cpu_s)):
            try:
                result = _encoded(answer(request))
            except MemoryError:
                os._exit(NO_MEMORY)
        answers.write(len(result).to_bytes(LENGTH_BYTES, "little") + result)
        answers.flush()


def _limit_memory(data: int) -> None:
    """Refuse this process more than `data` bytes of memory that is not a mapped file."""
    _, most = resource.getrlimit(resource.RLIMIT_DATA)  # of the user or the service; it stays
    limit = data if most == resource.RLIM_INFINITY else min(data, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, most))


def _encoded(answer: Any) -> bytes:
    """A text as it is, which is faster; anything else as JSON. Never an object that Python would build."""
    if isinstance(answer, str):
        return b"t" + answer.encode("utf-8", "surrogatepass")
    return b"j" + json.dumps(answer).encode()


def _decoded(data: bytes) -> Any:
    if data.startswith(b"t"):
        return data[1:].decode("utf-8", "surrogatepass")
    return json.loads(data[1:])


def _module(file: str) -> Any:
    """The module of a file, without the package around it: its imports would take longer."""
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _timers(cpu_s: float) -> Iterator[None]:
    """The kernel ends this process where the block takes longer."""
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    signal.setitimer(signal.ITIMER_REAL, cpu_s * WALL_PER_CPU)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
