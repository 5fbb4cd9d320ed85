"""Files and folders: the cache folder, JSON, hashes, whole writes, temporary names, sizes as text."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeft.errors import InputError


def home() -> Path:
    """Where imported bases and measurements are kept: EDGEFT_HOME, else the user's cache."""
    chosen = os.environ.get("EDGEFT_HOME")
    if chosen:
        return Path(chosen).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "edgeft"


def write_text(path: Path, text: str) -> None:
    """Write a small file so that it is either the old text or the new one."""
    with whole_file(path) as temp:
        temp.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A place to write a file that is then `path`, whole; for one that needs no manifest."""
    temp = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        yield temp
        fsync(temp)
        os.replace(temp, path)
        fsync(path.parent)
    finally:
        temp.unlink(missing_ok=True)


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A temporary folder in `folder`, gone afterwards; what a killed run left of one goes, too."""
    folder.mkdir(parents=True, exist_ok=True)
    sweep_target(folder / "scratch")
    temp = folder / f".scratch.partial-{os.getpid()}"
    temp.mkdir()
    try:
        yield temp
    finally:
        remove(temp)


def human(size: float) -> str:
    """Bytes for people, in powers of 1000 as disks and llama.cpp count."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit in ("B", "kB") else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def sha256(path: Path) -> str:
    """Of a file's content; read once per process as long as the file is the same."""
    now = path.stat()
    return _sha256(path.absolute(), now.st_ino, now.st_size, now.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _sha256(path: Path, *_: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sweep(folder: Path) -> None:
    """Remove what killed runs left in a folder of results, of whatever target."""
    if folder.is_dir():
        found = (re.fullmatch(r"\.(.+)\.partial-\d+(-old)?", p.name) for p in folder.iterdir())
        for name in sorted({match[1] for match in found if match}):
            sweep_target(folder / name)


def sweep_target(target: Path) -> None:
    """Remove what a killed run left, but not what a living one is writing.

    A run killed between the two renames of an overwrite left the old result under its second name:
    that one is put back.
    """
    pattern = re.compile(re.escape(f".{target.name}.partial-") + r"(\d+)(-old)?")
    for path in target.parent.iterdir():
        match = pattern.fullmatch(path.name)
        if match and (int(match[1]) == os.getpid() or not Path(f"/proc/{match[1]}").exists()):
            if match[2] and not target.exists():
                os.replace(path, target)
            else:
                remove(path)


def remove(path: Path) -> None:
    """A file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, {} where the file is absent."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}", "download or write it again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} does not hold a JSON object", "download or write it again")
    return value
