"""This machine -> CPU and engine versions, free memory and disk, a check before work starts."""

from __future__ import annotations

import contextlib
import shutil
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
    available here.
    """
    bounds = [_meminfo("MemAvailable")]
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
