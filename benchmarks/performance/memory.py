"""An artifact -> memory of a process that only loads it and answers one prompt, and the smallest limit.

    load_s, memory = measure(Path("q4_k_m.gguf"))
    memory.anonymous, memory.file                  # bytes that must stay, bytes that can be read again
    smallest_limit(Path("q4_k_m.gguf"), memory)    # bytes at which it keeps 95 % of its speed

VmRSS counts the touched part of mapped weights, so the resident set alone says little. Both parts are
sampled every 10 ms (proc(5): RssAnon, RssFile), and the proportional set size is read at the end.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from edgeft.benchmarks.performance.process import RuntimeProcess, Workload, prepare
from edgeft.errors import EdgeftError
from edgeft.kv_cache import KV_TYPES, gguf_widths, kv_bytes
from edgeft.machine import kilobytes
from edgeft.progress import say
from edgeft.records import Memory
from edgeft.weights import gguf_reader

SAMPLE_INTERVAL_S = 0.01
"""seconds between two samples"""
MIN_SPEED_SHARE = 0.95
"""share of the unlimited speed that a limit must leave"""
RETRY_SHARE = 0.7
"""shares from here to MIN_SPEED_SHARE are measured again: too little memory costs far more speed"""
LIMIT_PRECISION = 0.05
"""relative precision of the limit"""
PROBE_TIMEOUT_S = 60.0
"""seconds after which a probe under a limit counts as too slow"""
WORKLOAD = Workload()
CGROUP_ROOTS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.swap.max"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", ""),
)
"""root of the cgroups and names of their limit files: version 2, version 1"""


def measure(artifact: Path, threads: int | None = None) -> tuple[float, Memory]:
    """(seconds to load with an empty page cache, memory)."""
    file = prepare(artifact, threads)
    drop_cache(file)
    with (
        RuntimeProcess(artifact, threads, context=WORKLOAD.prompt + WORKLOAD.new + 64) as model,
        _sampled(model) as top,
    ):
        cold = model.loaded()
        model.run(WORKLOAD, 0)
        pss = kilobytes(f"/proc/{model.pid}/smaps_rollup").get("Pss", 0)
    cache = 0
    if file.suffix == ".gguf":
        cache = kv_bytes(gguf_widths(gguf_reader.read(file).meta), 1, KV_TYPES["f16"])
    used = Memory(top["VmHWM"], top["RssAnon"], top["RssFile"], pss, cache_per_token=cache)
    return cold, used


def smallest_limit(artifact: Path, memory: Memory, threads: int | None = None) -> int | None:
    """Smallest memory limit of a cgroup that keeps 95 % of the decoding speed, bytes, to within 5 %.

    None, with a note, where no group can be made or even the largest limit is slower. Each probe is a
    new process in a new group. The artifact is dropped from the page cache first, because cached pages
    stay charged to the process that read them first.
    """
    full = _decode_tps(artifact, None, threads)
    low, high = memory.anonymous * 3 // 4, memory.peak * 5 // 4
    try:
        if _speed_share(artifact, high, threads, full) < MIN_SPEED_SHARE:
            say(
                f"{artifact.name} is slower in a group of {high / 1e6:.0f} MB: no limit is reported"
            )
            return None
    except OSError as error:
        say(f"no cgroup can be made here, so no limit is found: {error.strerror or error}")
        return None
    while high - low > LIMIT_PRECISION * high:
        middle = (low + high) // 2
        share = _speed_share(artifact, middle, threads, full)
        say(f"{artifact.name} in {middle / 1e6:.0f} MB: {share:.0%} of the speed")
        low, high = (low, middle) if share >= MIN_SPEED_SHARE else (middle, high)
    return high


def _speed_share(artifact: Path, limit: int, threads: int | None, full: float) -> float:
    """Of the speed without a limit, which is `full` and for a near miss measured again beside it."""
    share = _decode_tps(artifact, limit, threads) / full
    if RETRY_SHARE < share < MIN_SPEED_SHARE:
        full = _decode_tps(artifact, None, threads)
        share = _decode_tps(artifact, limit, threads) / full
    return share


def _decode_tps(artifact: Path, limit: int | None, threads: int | None) -> float:
    """Tokens per second under a limit of so many bytes; 0 where the model does not run at all.

    OSError where no group can be made.
    """
    drop_cache(prepare(artifact, threads))
    with contextlib.ExitStack() as stack:
        procs = stack.enter_context(_group(limit)) if limit else None
        model = stack.enter_context(
            RuntimeProcess(artifact, threads, WORKLOAD.prompt + WORKLOAD.new + 64, procs)
        )
        alarm = threading.Timer(PROBE_TIMEOUT_S, os.kill, (model.pid, 9))
        alarm.start()
        stack.callback(alarm.cancel)
        try:
            model.loaded()
            model.run(WORKLOAD, 0)
            runs = [model.run(WORKLOAD, i) for i in (1, 2, 3)]
        except EdgeftError:
            return 0.0
        return max(1 / run.seconds_per_token[0] for run in runs)


@contextlib.contextmanager
def _group(limit: int) -> Iterator[str]:
    """A cgroup with a limit in bytes and no swap; gives the path of its `cgroup.procs`."""
    for root, name, swap in CGROUP_ROOTS:
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
    for _ in range(100):  # a group can be removed once its killed processes are gone
        try:
            return group.rmdir()
        except OSError:
            time.sleep(0.05)


@contextlib.contextmanager
def _sampled(model: RuntimeProcess) -> Iterator[dict[str, int]]:
    """Largest value of some fields of the process's status while the block runs, bytes."""
    top = {"VmHWM": 0, "RssAnon": 0, "RssFile": 0}
    done = threading.Event()

    def sample() -> None:
        while True:
            now = kilobytes(f"/proc/{model.pid}/status")
            top.update({name: max(most, now.get(name, 0)) for name, most in top.items()})
            if done.wait(SAMPLE_INTERVAL_S):
                return

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield top
    finally:
        done.set()
        thread.join()


def drop_cache(artifact: Path) -> None:
    """Drop the files' pages from the page cache, except those that another process maps."""
    files = [artifact] if artifact.is_file() else [f for f in artifact.rglob("*") if f.is_file()]
    for file in files:
        with contextlib.suppress(OSError), open(file, "rb") as handle:
            os.fsync(handle.fileno())  # unwritten pages cannot be dropped
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
