"""A JSONL file that is only appended to, by one program at a time: a killed one loses at most a line.

with AppendedFile(Path("votes.jsonl"), in_use=InputError("votes.jsonl is open")) as file:
    file.lines              # as bytes; the last one may be a part, see `drop_partial_line`
    file.append({"item": 3, "vote": "a"})
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edgeft.errors import EdgeftError


class AppendedFile:
    """The file, locked until `close`; made where it does not exist. Opening it changes nothing in it."""

    def __init__(self, path: Path, in_use: EdgeftError) -> None:
        """`in_use`: raised where another program has it open."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self._file = path.open("r+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise in_use from None
        self.lines = self._file.read().splitlines(keepends=True)

    def drop_partial_line(self) -> bool:
        """Cut off a line after the first that has no end, of a program that was killed; whether there was one."""
        if len(self.lines) < 2 or self.lines[-1].endswith(b"\n"):
            return False
        self._file.seek(-len(self.lines.pop()), os.SEEK_END)
        self._file.truncate()
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def clear(self) -> None:
        """Remove all lines."""
        self._file.truncate(0)
        self.lines = []

    def append(self, value: dict[str, Any]) -> None:
        """Add a line, which is on the disk when this returns. Where that fails, the file stays as it was."""
        end = self._file.seek(0, os.SEEK_END)
        line = (json.dumps(value) + "\n").encode()
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(end)
            raise
        self.lines.append(line)

    def close(self) -> None:
        self._file.close()
