"""Memory of one artifact in a process that only loads it and answers one prompt.

    found = measure(Path("q4_k_m.gguf"))
    found.anonymous, found.file             # what must stay, and what the system may drop and read again
    smallest(Path("q4_k_m.gguf"), found)    # the limit at which it still keeps 95 % of its speed

VmRSS counts mapped weights as far as they were touched, so the resident set alone says little: both
parts are sampled every 10 ms (proc(5): RssAnon, RssFile), and the proportional set size at the end.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from edgeft.benchmarks.performance.process import Timed, Use, prepare
from edgeft.errors import EdgeftError
from edgeft.machine import kilobytes
from edgeft.progress import say
from edgeft.records import Memory

EVERY = 0.01
"""s between two samples"""
KEEPS = 0.95
"""share of the speed that a limit must leave"""
NEAR = 0.7
"""share from which on the machine may be the reason: too little memory is a cliff"""
STEP = 0.05
"""the limit is found to such a share of itself"""
SLOW = 60.0
"""s after which a probe under a limit counts as too slow"""
USE = Use()
ROOTS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.swap.max"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", ""),
)
"""where groups are, and the files of their limits: version 2, version 1"""


def measure(artifact: Path, threads: int | None = None) -> tuple[float, Memory]:
    """(seconds to load with nothing in the page cache, memory)."""
    drop_cache(prepare(artifact, threads))
    with (
        Timed(artifact, threads, context=USE.prompt + USE.new + 64) as model,
        _sampled(model) as top,
    ):
        cold = model.loaded()
        model.run(USE, 0)
        pss = kilobytes(f"/proc/{model.pid}/smaps_rollup").get("Pss", 0)
    return cold, Memory(top["VmHWM"], top["RssAnon"], top["RssFile"], pss)


def smallest(artifact: Path, found: Memory, threads: int | None = None) -> int | None:
    """Bytes of the smallest limit of a cgroup, found to 5 %, that keeps 95 % of the decoding speed;
    None, with a note, where no group can be made or the largest one is slower already.

    Each probe is a new process in a new group, with nothing of the artifact in the page cache, which
    would otherwise be charged to whoever read it first.
    """
    full = _decode(artifact, None, threads)
    low, high = found.anonymous * 3 // 4, found.peak * 5 // 4
    try:
        if _share(artifact, high, threads, full) < KEEPS:
            say(f"{artifact.name} is slower in a group of {high / 1e6:.0f} MB: no limit is told")
            return None
    except OSError as error:
        say(f"no cgroup can be made here, so no limit is found: {error.strerror or error}")
        return None
    while high - low > STEP * high:
        middle = (low + high) // 2
        share = _share(artifact, middle, threads, full)
        say(f"{artifact.name} in {middle / 1e6:.0f} MB: {share:.0%} of the speed")
        low, high = (low, middle) if share >= KEEPS else (middle, high)
    return high


def _share(artifact: Path, limit: int, threads: int | None, full: float) -> float:
    """Of the speed without a limit, which is `full` and for a near miss measured again beside it."""
    share = _decode(artifact, limit, threads) / full
    if NEAR < share < KEEPS:
        full = _decode(artifact, None, threads)
        share = _decode(artifact, limit, threads) / full
    return share


def _decode(artifact: Path, limit: int | None, threads: int | None) -> float:
    """Tokens per second under a limit, 0 where it is too small to run at all; OSError where no group
    can be made."""
    drop_cache(prepare(artifact, threads))
    with contextlib.ExitStack() as stack:
        procs = stack.enter_context(_group(limit)) if limit else None
        model = stack.enter_context(Timed(artifact, threads, USE.prompt + USE.new + 64, procs))
        alarm = threading.Timer(SLOW, os.kill, (model.pid, 9))
        alarm.start()
        stack.callback(alarm.cancel)
        try:
            model.loaded()
            model.run(USE, 0)
            runs = [model.run(USE, i) for i in (1, 2, 3)]
        except EdgeftError:
            return 0.0
        return max(1 / run.paces[0] for run in runs)


@contextlib.contextmanager
def _group(limit: int) -> Iterator[str]:
    """A cgroup with so many bytes and no swap: its file of processes."""
    for root, name, swap in ROOTS:
        group = root / f"edgeft-{os.getpid()}"
        if not (root / "cgroup.procs").exists():
            continue
        group.mkdir()
        try:
            (group / name).write_text(str(limit))
            if swap:
                with contextlib.suppress(OSError):
                    (group / swap).write_text("0")
            yield str(group / "cgroup.procs")
        finally:
            _remove(group)
        return
    raise FileNotFoundError("no cgroups here")


def _remove(group: Path) -> None:
    for _ in range(100):  # its processes end soon after they are killed
        try:
            return group.rmdir()
        except OSError:
            time.sleep(0.05)


@contextlib.contextmanager
def _sampled(model: Timed) -> Iterator[dict[str, int]]:
    """The largest of each field of the process's status while the block runs."""
    top = {"VmHWM": 0, "RssAnon": 0, "RssFile": 0}
    done = threading.Event()

    def sample() -> None:
        while True:
            now = kilobytes(f"/proc/{model.pid}/status")
            top.update({name: max(most, now.get(name, 0)) for name, most in top.items()})
            if done.wait(EVERY):
                return

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield top
    finally:
        done.set()
        thread.join()


def drop_cache(artifact: Path) -> None:
    """Ask the system to forget the files' pages; what another process maps stays."""
    files = [artifact] if artifact.is_file() else [f for f in artifact.rglob("*") if f.is_file()]
    for file in files:
        with contextlib.suppress(OSError), open(file, "rb") as handle:
            os.fsync(handle.fileno())  # pages that are not yet written cannot be dropped
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
