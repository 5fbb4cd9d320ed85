"""This machine -> CPU and engine versions, free memory and disk, a check before work starts.

with limited(Budget(max_memory=4 * 10**9)):     # as if the machine had no more
    preflight(folder, "training", memory=5 * 10**9)      # ResourceError names both figures
"""

from __future__ import annotations

import contextlib
import dataclasses
import resource
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft.errors import ResourceError
from edgeft.files import format_bytes

ISA = ("fma", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
       "asimddp", "i8mm", "sve")  # fmt: skip
"""instruction sets by which engines choose their kernels for 4 and 8 bits"""
ENGINES = ("llama-cpp-python", "onnxruntime", "onnxruntime-genai", "torch", "transformers")
"""packages whose versions can change a figure"""


def describe_machine() -> dict[str, Any]:
    """What must be the same before two figures may be compared."""
    import os
    import platform
    from importlib.metadata import PackageNotFoundError, version

    facts: dict[str, Any] = {
        "cpu": platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
    }
    flags: set[str] = set()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = (part.strip() for part in line.partition(":"))
            if name == "model name":
                facts["cpu"] = value
            elif name in ("flags", "Features"):
                flags = set(value.split())
    facts["isa"] = " ".join(name for name in ISA if name in flags)
    with contextlib.suppress(OSError):
        governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
        facts["governor"] = governor.read_text().strip()
    for package in ENGINES:
        with contextlib.suppress(PackageNotFoundError):
            facts[package.replace("-", "_")] = version(package)
    return facts


CGROUP = Path("/sys/fs/cgroup")
"""mount point of cgroup v2"""


@dataclass(frozen=True)
class Budget:
    """What a command may take: the options of the commands that work for long."""

    max_memory: int | None = None
    """Memory at most, such as 4G: what needs more is refused with its figure before it starts, and what
    takes more all the same ends with one line. Pages of files that the kernel can drop do not count."""
    max_disk: int | None = None
    """Disk at most that the results and the files on the way to them take, such as 20G: what needs more is
    refused with its figure before it starts."""

    def shared_by(self, processes: int) -> Budget:
        """The budget of each of several processes; the disk is checked before they start."""
        memory = self.max_memory and self.max_memory // processes
        return dataclasses.replace(self, max_memory=memory)


_budget = Budget()


def budget() -> Budget:
    """That of the `limited` block around."""
    return _budget


@contextlib.contextmanager
def limited(budget: Budget) -> Iterator[None]:
    """Within the block the machine has no more than the budget."""
    global _budget
    before, rlimit = _budget, resource.getrlimit(resource.RLIMIT_DATA)
    _budget = budget
    try:
        yield
    finally:
        _budget = before
        resource.setrlimit(resource.RLIMIT_DATA, rlimit)


def has_memory_budget() -> bool:
    """Whether `limited` names a size of memory."""
    return _budget.max_memory is not None


def hold_memory() -> None:
    """Let the kernel refuse memory beyond the budget, to this process and those that it starts.

    Called once the libraries are loaded: they reserve more than they use, and what they have reserved
    until then counts as used.
    """
    if _budget.max_memory is None:
        return
    sizes = kilobytes("/proc/self/status")
    reserved = max(0, sizes.get("VmData", 0) - sizes.get("RssAnon", 0))
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _budget.max_memory + reserved
    if most != resource.RLIM_INFINITY:
        limit = min(limit, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, most))


def preflight(
    folder: Path,
    what: str,
    disk: int = 0,
    memory: int = 0,
    spare: str = "take a smaller model or context",
) -> None:
    """ResourceError where `what` needs more bytes of `disk` at `folder`, or of `memory`, than are free.

    `folder` need not exist yet. `spare` is the hint for less memory.
    """
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if disk > (_budget.max_disk or disk):
        raise ResourceError(
            f"{what} needs {format_bytes(disk)} of disk, more than --max-disk "
            f"{format_bytes(_budget.max_disk or 0)}",
            "raise it, or ask for less",
        )
    free = shutil.disk_usage(existing).free
    if disk > free:
        raise ResourceError(
            f"{what} needs {format_bytes(disk)} of disk at {existing}, {format_bytes(free)} is free",
            "free some, or choose another output",
        )
    available = available_memory()
    if memory > available:
        raise ResourceError(
            f"{what} needs about {format_bytes(memory)} of memory, "
            f"{format_bytes(available)} is available",
            f"close other programs, or {spare}",
        )


def available_memory() -> int:
    """Bytes that a new process can use without swapping, within the limit of this process's cgroup.

    A cgroup counts cached pages of files as used, but the kernel drops them on demand, so they count as
    available here. Within `limited` it is no more than the budget.
    """
    bounds = [_meminfo("MemAvailable")]
    if _budget.max_memory is not None:
        bounds.append(_budget.max_memory)  # what is needed is that of the whole process
    with contextlib.suppress(OSError, ValueError):
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        for line in (CGROUP / "memory.stat").read_text().splitlines():
            key, _, size = line.partition(" ")
            if key in ("inactive_file", "active_file"):
                used -= int(size)
        bounds.append(limit - used)
    return max(0, min(bounds))


def kilobytes(file: str) -> dict[str, int]:
    """Name -> bytes, of the lines `Name: 123 kB` of a file in /proc; {} where it does not exist."""
    sizes = {}
    with contextlib.suppress(OSError):
        for line in Path(file).read_text().splitlines():
            name, _, rest = line.partition(":")
            if rest.endswith("kB"):
                sizes[name] = int(rest.split()[0]) * 1024
    return sizes


def _meminfo(key: str) -> int:
    try:
        return kilobytes("/proc/meminfo")[key]
    except KeyError:
        raise ResourceError(f"/proc/meminfo has no {key}") from None
