"""The log of a stage's calls -> every state that a loss of power can leave on the disk.

    calls = read_log(Path("log"))
    for state in crash_states(calls, {"out/q8_0.gguf": b"old"}, Path("/place")):    # {name: bytes}

After each call: what was written to a file and not flushed (fsync) is gone, or half of it is. A change of a
name is certain once its folder was flushed. Of those that were not, all are there, none, or one more or less:
file systems promise no order. The model is that of ALICE (Pillai et al., OSDI 2014), with fewer torn states.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

NAMES = ("create", "rename", "exchange", "unlink", "mkdir", "symlink")
"""calls that change names"""
MOST_SINGLE = 8
"""of the latest uncertain names, each is lost or left alone; older ones only all together"""
DATA = ("gone", "half")
"""what is left of the bytes that were not flushed"""


class Call(NamedTuple):
    name: str
    path: str
    other: str
    offset: int
    data: bytes
    size: int

    @property
    def folders(self) -> set[str]:
        """Folders whose flush makes the call certain."""
        paths = [self.path, self.other] if self.name in ("rename", "exchange") else [self.path]
        return {path.rpartition("/")[0] for path in paths}


@dataclass
class File:
    data: bytearray = field(default_factory=bytearray)
    flushed: bytes = b""

    def left(self, rule: str) -> bytes:
        """What is on the disk after the loss of power."""
        if bytes(self.data) == self.flushed or rule == "gone":
            return self.flushed
        same = next(
            (i for i, (a, b) in enumerate(zip(self.data, self.flushed, strict=False)) if a != b),
            min(len(self.data), len(self.flushed)),
        )
        return bytes(self.data[: (same + len(self.data)) // 2])


def read_log(path: Path) -> list[Call]:
    """The calls of a log of fault_shim.c, without those on files that have no name."""
    data, calls, place = path.read_bytes(), [], 0
    while place < len(data):
        end = data.index(b"\n", place)
        _, name, one, other, offset, size = data[place:end].decode().split("\t")
        place = end + 1
        if name == "write":
            end, place = place, place + int(size)
        call = Call(name, one, other, int(offset), data[end:place], int(offset))
        if not one.endswith("(deleted)"):
            calls.append(call)
    return calls


class Disk:
    """Files by their paths. A folder is only the beginning of a path."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = {name: File(bytearray(data), data) for name, data in files.items()}

    def apply(self, call: Call) -> None:
        if call.name in ("rename", "exchange"):
            self._move(call.path, call.other, call.name == "exchange")
        elif call.name == "create":
            self.files[call.path] = File()
        elif call.name == "unlink":
            self.files.pop(call.path, None)
        elif file := self._file(call):
            if call.name == "write":
                file.data.extend(b"\0" * (call.offset - len(file.data)))
                file.data[call.offset : call.offset + len(call.data)] = call.data
            elif call.name == "truncate":
                file.data = file.data[: call.size].ljust(call.size, b"\0")
            elif call.name == "empty":
                file.data.clear()
            elif call.name == "fsync":
                file.flushed = bytes(file.data)

    def _file(self, call: Call) -> File | None:
        """safetensors renames its temporary file past the C library: a flush shows its new name."""
        if call.path not in self.files and call.name in ("fsync", "write"):
            folder = call.path.rpartition("/")[0]
            for name in [name for name in self.files if name.startswith(f"{folder}/.tmp")]:
                self.files[call.path] = self.files.pop(name)
        return self.files.get(call.path)

    def _move(self, old: str, new: str, exchange: bool) -> None:
        taken = {name: self.files.pop(name) for name in list(self.files) if _within(name, old)}
        if not taken:
            return
        others = {name: self.files.pop(name) for name in list(self.files) if _within(name, new)}
        self.files |= {new + name[len(old) :]: file for name, file in taken.items()}
        if exchange:
            self.files |= {old + name[len(new) :]: file for name, file in others.items()}


def _within(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}/")


def crash_states(
    calls: list[Call], before: dict[str, bytes], folder: Path
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(where, name in `folder` -> bytes) of each different state; `before`: the files at the start."""
    start = {f"{folder}/{name}": data for name, data in before.items()}
    seen = set()
    for end in range(len(calls) + 1):
        uncertain = [i for i in range(end) if _is_uncertain(calls, i, end)]
        latest = uncertain[-MOST_SINGLE:]
        every = set(uncertain)
        lost_sets = [set(), every, *({i} for i in latest), *(every - {i} for i in latest)]
        for lost, rule in itertools.product(lost_sets, DATA):
            disk = Disk(start)
            for i in range(end):
                if i not in lost:
                    disk.apply(calls[i])
            state = {
                name[len(f"{folder}/") :]: file.left(rule) for name, file in disk.files.items()
            }
            key = tuple(sorted(state.items()))
            if key not in seen:
                seen.add(key)
                last = f"{calls[end - 1].name} {calls[end - 1].path}" if end else "the start"
                yield f"after call {end} ({last}), lost {sorted(lost)}, {rule}", state


def _is_uncertain(calls: list[Call], i: int, end: int) -> bool:
    if calls[i].name not in NAMES:
        return False
    flushed = {call.path for call in calls[i:end] if call.name == "fsync"}
    return not calls[i].folders <= flushed
