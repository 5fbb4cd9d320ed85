"""Paths -> the cache folder, JSON, hashes, files written whole or not at all, sizes as text."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeft.errors import InputError, StaleError
from edgeft.progress import say

MAX_JSON_BYTES, MAX_TOKENIZER_BYTES = 16_000_000, 64_000_000
"""of a file of a model: read, JSON takes up to 25 times its bytes. The largest tokenizers have 35 MB."""
MAX_TOML_BYTES = 1_000_000
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""of Linux's fcntl.h and fs.h"""


def home() -> Path:
    """The folder of imported bases and measurements: EDGEFT_HOME, else the user's cache folder."""
    from platformdirs import user_cache_path

    folder = os.environ.get("EDGEFT_HOME")
    return expand_user(folder) if folder else user_cache_path("edgeft", appauthor=False)


def expand_user(path: str) -> Path:
    """A path with ~ or ~name replaced by a home folder; InputError for a user that does not exist."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(f"{path}: there is no such user", "~ alone is your own home") from None


def write_text(path: Path, text: str) -> None:
    """Write a small UTF-8 file. At any moment it holds the old text or the new one.

    A file name that is no UTF-8 is a text with surrogates. They are written as \\udcff, which JSON
    reads as what it was.
    """
    with whole_file(path) as temp:
        temp.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path to write to. On a clean exit it is flushed and renamed to `path`.

    For files without a manifest; `edgeft.store.writing` writes one. What killed runs left is removed.
    """
    temp = partial_path(path)
    for dead, _ in dead_partials(path):
        if dead != temp:  # another thread may be writing it
            remove(dead)
    try:
        yield temp
        fsync(temp)
        os.replace(temp, path)
        fsync(path.parent)
    finally:
        temp.unlink(missing_ok=True)


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A temporary folder in `folder`, removed at the end; that of a killed run is removed first."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "scratch"
    sweep_target(target)
    temp = partial_path(target)
    temp.mkdir()
    try:
        yield temp
    finally:
        remove(temp)


def partial_path(target: Path) -> Path:
    """The path beside `target` where this process writes it."""
    return target.with_name(f".{target.name}.partial-{os.getpid()}")


def final_name(path: Path) -> str:
    """The name that a partial path will have: it must not depend on the process."""
    match = re.fullmatch(r"\.(.+)\.partial-\d+", path.name)
    return match[1] if match else path.name


def format_bytes(size: float) -> str:
    """1_234_567 -> "1.2 MB": powers of 1000, as disks and llama.cpp count."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit in ("B", "kB") else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def text_sha256(text: str) -> str:
    """Hexadecimal SHA-256 of the UTF-8 text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file. An unchanged file is read once per process."""
    status = path.stat()
    return _sha256(path.absolute(), status.st_ino, status.st_size, status.st_mtime_ns)


def forget_hashes() -> None:
    """Let `sha256` read every file again: bytes can change under the same size and time."""
    _sha256.cache_clear()


@functools.lru_cache(maxsize=1024)
def _sha256(path: Path, *_: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def partial_targets(folder: Path) -> list[Path]:
    """The targets of which there are partial results in a folder."""
    if not folder.is_dir():
        return []
    matches = (re.fullmatch(r"\.(.+)\.partial-\d+(-old)?", p.name) for p in folder.iterdir())
    return [folder / name for name in sorted({match[1] for match in matches if match})]


def sweep_target(target: Path) -> None:
    """Remove what killed runs left of `target`, but nothing of a running process.

    A run that was killed between the two renames of an overwrite left the old result under the name
    `-old`. It is renamed back.
    """
    for path, is_old in dead_partials(target):
        if is_old and not target.exists():
            os.replace(path, target)
        else:
            remove(path)


def dead_partials(target: Path) -> list[tuple[Path, bool]]:
    """What killed runs left of `target`: (path, whether it is an old result set aside)."""
    pattern = re.compile(re.escape(f".{target.name}.partial-") + r"(\d+)(-old)?")
    matches = ((path, pattern.fullmatch(path.name)) for path in target.parent.iterdir())
    return [
        (path, bool(match[2]))
        for path, match in matches
        if match and (int(match[1]) == os.getpid() or not Path(f"/proc/{match[1]}").exists())
    ]


_claims: dict[Path, int] = {}
"""lock file -> the thread of this process that holds it"""


@contextlib.contextmanager
def claimed(target: Path, seconds: float = 0) -> Iterator[None]:
    """Keep other runs from writing `target`; StaleError where one does so for longer than `seconds`.

    The folder of the target is made. The lock is that of the file `.NAME.lock` beside the target and
    ends with the process. It is not held where the file system has no locks. A thread may claim what
    it has claimed already.
    """
    place = Path(os.path.realpath(target))
    lock = place.with_name(f".{place.name}.lock")
    if _claims.get(lock) == threading.get_ident():
        yield
        return
    new_folders = make_folder(place.parent)
    try:
        handle = _lock(lock, target, seconds)
        _claims[lock] = threading.get_ident()
        try:
            yield
        finally:
            del _claims[lock]
            with contextlib.suppress(OSError):  # a file without its lock stops nobody
                lock.unlink()
            os.close(handle)
    finally:
        _remove_empty(new_folders)  # where no result is in them


def _lock(lock: Path, target: Path, seconds: float) -> int:
    """The handle of the lock file, locked."""
    until = time.monotonic() + seconds
    waits = False
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            if time.monotonic() >= until:
                raise StaleError(
                    f"another run is writing {target}",
                    "wait until it ends, or choose another output",
                ) from None
            if not waits:
                say(f"another run is writing {target}: waiting for it")
            waits = True
            time.sleep(0.05)
            continue
        except OSError:
            return handle
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(handle), os.stat(lock)):
                return handle
        os.close(handle)  # the run that held it has just removed it


def make_folder(folder: Path) -> list[Path]:
    """Make a folder and those above it, with their names on the disk; the new ones, outermost first."""
    missing: list[Path] = []
    while not folder.is_dir():
        missing.insert(0, folder)
        folder = folder.parent
    try:
        for new in missing:
            new.mkdir(exist_ok=True)
            fsync(new.parent)
    except OSError:
        _remove_empty(missing)
        raise
    return missing


def _remove_empty(folders: list[Path]) -> None:
    for folder in reversed(folders):
        with contextlib.suppress(OSError):
            folder.rmdir()


def remove(path: Path) -> None:
    """Remove a file or a folder with its content, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def replace_folder(temp: Path, target: Path) -> None:
    """Put a folder in place, in one step where the file system can exchange two names.

    Else the old folder is set aside first, and `sweep_target` puts it back where a run was killed then.
    """
    old = temp.with_name(f"{temp.name}-old")
    if not target.exists():
        os.replace(temp, target)
    elif exchange(temp, target):
        old = temp
    else:
        os.replace(target, old)
        try:
            os.replace(temp, target)
        except BaseException:
            os.replace(old, target)
            raise
    try:
        fsync(target.parent)
    finally:
        remove(old)


def exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two folders in one step; False where the file system cannot.

    https://man7.org/linux/man-pages/man2/rename.2.html (RENAME_EXCHANGE)
    """
    import ctypes

    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:  # another C library than glibc >= 2.28
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def fsync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_file(path: Path) -> bool:
    """Whether a file is there: False also for a name that none can have, and without rights to look."""
    return os.path.isfile(path)


def read_bytes(path: Path, max_bytes: int, plain: bool = True) -> bytes:
    """The content of a file. FileNotFoundError where there is none, InputError for a larger one.

    `plain`: also InputError for a device or a pipe, which can be read for ever. Files of a model are
    plain; one that the user names may be a pipe.
    """
    try:
        status = path.stat()
        if plain and not stat.S_ISREG(status.st_mode):
            raise InputError(
                f"{path} is not a plain file", "a folder, a device or a pipe is not read"
            )
        content, size = b"", status.st_size
        if size <= max_bytes:
            with path.open("rb") as file:
                content = file.read(size + 1 if size else max_bytes + 1)  # a pipe has no size
            size = max(size, len(content))
        if size > max_bytes:
            raise InputError(
                f"{path} has {format_bytes(size)}, more than that of any model",
                f"at most {format_bytes(max_bytes)} are read",
            )
        return content
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (
        OSError,
        ValueError,
    ) as error:  # no rights, a circle of links, a name that none can have
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"{str(path)[:500]} cannot be read: {reason}", "check the path") from None


def read_text(path: Path, max_bytes: int = MAX_JSON_BYTES, plain: bool = True) -> str:
    """As `read_bytes`, UTF-8; InputError for anything else. Line ends are \\n."""
    try:
        text = read_bytes(path, max_bytes, plain).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error}", "download or write it again") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} where the file does not exist. InputError for anything else."""
    try:
        text = read_text(
            path, MAX_TOKENIZER_BYTES if path.name == "tokenizer.json" else MAX_JSON_BYTES
        )
        value = json.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}", "download or write it again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} does not hold a JSON object", "download or write it again")
    return value


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file that the user names; InputError where it is none."""
    import tomllib

    try:
        return tomllib.loads(read_text(path, MAX_TOML_BYTES, plain=False))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"no such file: {path}", "check --config") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not TOML: {error}", "lines such as quant = 'q8_0'") from None
