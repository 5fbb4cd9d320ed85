"""A bad file or folder of the corpus: how it is made, which reader gets it, what the refusal says."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Write = Callable[[Path], Path]
"""an empty folder -> the path that the reader gets, in it"""


@dataclass(frozen=True)
class Case:
    reader: str
    """a key of READERS of tests/cases/test_bad_models.py"""
    write: Write
    says: str
    """a regular expression that the refusal fits"""
    reads: int = 1_000_000
    """bytes at most that are read before it"""


def a_file(name: str, data: bytes) -> Write:
    """Writes a file of these bytes."""

    def write(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return write


def sparse(name: str, size: int, start: bytes = b"") -> Write:
    """Writes a file of `size` bytes that takes no disk."""

    def write(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(start)
        with path.open("r+b") as file:
            file.truncate(size)
        return path

    return write


def with_header(header: Any, body: int = 0) -> bytes:
    """A safetensors file: `header` as JSON, or as the bytes that it is, and `body` zeros."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(body)
