"""Results that are whole or absent.

A stage writes into a temporary neighbour, flushes it to the disk, renames it into place and
writes the manifest last; whatever stops it before that leaves the old state. A second run with the
same options and parents finds the manifest and does nothing.

    with stage.writing(out, kind="artifact", options=opts, parents=parents) as work:
        (work.path).write_bytes(...)
        work.facts["beta"] = 1.0
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgeft import __version__
from edgeft.errors import InputError, ResourceError, StaleError
from edgeft.records import SCHEMA, FileRecord, Manifest

CGROUP = Path("/sys/fs/cgroup")


@dataclass
class Work:
    path: Path
    """where to write: a folder that exists, or a file that does not exist yet"""
    facts: dict[str, Any] = field(default_factory=dict)


def manifest_path(target: Path) -> Path:
    """A folder holds its manifest; a file has it beside it."""
    if target.suffix == ".gguf":
        return target.with_name(target.name + ".manifest.json")
    return target / "manifest.json"


def read_manifest(target: Path) -> Manifest | None:
    """The manifest of a complete noun, or None where there is none."""
    path = manifest_path(target)
    try:
        manifest = Manifest.from_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a manifest: {error}", "delete it and run again") from None
    if manifest.schema > SCHEMA:
        raise InputError(f"{path} was written by a newer edgeft", "upgrade edgeft")
    return manifest


def finished(
    target: Path, kind: str, options: dict[str, Any], parents: dict[str, str]
) -> Manifest | None:
    """The manifest when `target` already is what this run would make, else None."""
    manifest = read_manifest(target)
    if manifest is None or (manifest.kind, manifest.parents) != (kind, parents):
        return None
    if manifest.options != json.loads(json.dumps(options)):
        return None
    sizes = {name: _part(target, name) for name in manifest.files}
    whole = all(
        path.is_file() and path.stat().st_size == manifest.files[name].size
        for name, path in sizes.items()
    )
    return manifest if whole else None


@contextlib.contextmanager
def writing(
    target: Path,
    *,
    kind: str,
    options: dict[str, Any],
    parents: dict[str, str],
    overwrite: bool = False,
) -> Iterator[Work]:
    """Yield a place to write; on a clean exit put it at `target` with its manifest.

    Raises StaleError where something else lies at `target` already and `overwrite` is off.
    """
    is_file = target.suffix == ".gguf"
    if target.parent.is_dir():
        _sweep(target)
    check_free(target, kind, options, parents, overwrite)
    made_parent = not target.parent.exists()
    target.parent.mkdir(parents=True, exist_ok=True)
    temp = target.with_name(f".{target.name}.partial-{os.getpid()}")
    if not is_file:
        temp.mkdir()
    try:
        work = Work(temp)
        yield work
        if is_file:
            files = {target.name: _record(temp)}
        else:
            files = {
                str(path.relative_to(temp)): _record(path)
                for path in sorted(temp.rglob("*"))
                if path.is_file()
            }
        manifest = Manifest(
            kind=kind,
            options=json.loads(json.dumps(options)),
            files=files,
            parents=parents,
            facts=work.facts,
            edgeft=__version__,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        if finished(target, kind, options, parents) is None:
            check_free(
                target, kind, options, parents, overwrite
            )  # another run may have been faster
        if is_file:
            manifest_path(target).unlink(missing_ok=True)
            os.replace(temp, target)
            write_text(manifest_path(target), manifest.to_json())
        else:
            write_text(temp / "manifest.json", manifest.to_json())
            old = target.with_name(f".{target.name}.partial-{os.getpid()}-old")
            if target.exists():
                os.replace(target, old)
            try:
                os.replace(temp, target)
            except BaseException:
                if old.exists():
                    os.replace(old, target)
                raise
            remove(old)
        _fsync(target.parent)
    finally:
        remove(temp)
        if made_parent:
            with contextlib.suppress(OSError):
                target.parent.rmdir()  # only where nothing came of it


def check_free(
    target: Path, kind: str, options: dict[str, Any], parents: dict[str, str], overwrite: bool
) -> None:
    """StaleError where `writing` would refuse because of what lies at `target`."""
    folder = target.is_dir() and any(target.iterdir())
    if not (folder or target.is_file()):
        if target.suffix == ".gguf" and target.is_dir():
            raise StaleError(f"{target} is a folder", "choose another output")
        return
    manifest = read_manifest(target)
    if folder and (manifest is None or manifest.kind != kind):
        raise StaleError(f"{target} was not made by this command", "choose another output")
    if overwrite:
        return
    told = "something else"
    if manifest is not None and manifest.kind == kind:
        now = {**json.loads(json.dumps(options)), **parents}
        then = {**manifest.options, **manifest.parents}
        names = sorted(name for name in {**now, **then} if now.get(name) != then.get(name))
        told = f"a result with other {', '.join(names)}" if names else "a result that was changed"
    raise StaleError(f"{target} already holds {told}", "--overwrite, or choose another output")


def check_not_foreign(file: Path, overwrite: bool) -> None:
    """StaleError for a file that nothing says is ours."""
    if file.exists() and read_manifest(file) is None and not overwrite:
        raise StaleError(
            f"{file} is there already", "move it away, --overwrite, or choose another output"
        )


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
        _fsync(temp)
        os.replace(temp, path)
        _fsync(path.parent)
    finally:
        temp.unlink(missing_ok=True)


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A temporary folder in `folder`, gone afterwards; what a killed run left of one goes, too."""
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder / "scratch")
    temp = folder / f".scratch.partial-{os.getpid()}"
    temp.mkdir()
    try:
        yield temp
    finally:
        remove(temp)


def preflight(
    folder: Path,
    what: str,
    disk: int = 0,
    memory: int = 0,
    spare: str = "take a smaller model or context",
) -> None:
    """Refuse before the work starts when `disk` or `memory` bytes cannot be had."""
    home = folder
    while not home.exists():
        home = home.parent
    free = shutil.disk_usage(home).free
    if disk > free:
        raise ResourceError(
            f"{what} needs {human(disk)} of disk at {home}, {human(free)} is free",
            "free some, or choose another output",
        )
    available = available_memory()
    if memory > available:
        raise ResourceError(
            f"{what} needs about {human(memory)} of memory, {human(available)} is available",
            f"close other programs, or {spare}",
        )


def available_memory() -> int:
    """Bytes a new process can have without swapping, the cgroup's limit included.

    A cgroup counts the pages of files that were read as used; the kernel gives them up on demand.
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


def identity(target: Path) -> str:
    """What names a parent: one hash over the names and hashes of its files.

    It comes from the manifest where there is one and from the files elsewhere, with the same
    result, so a model keeps its identity when it is copied without its manifest. Of a folder only
    what makes the model counts: weights, JSON and templates.
    """
    if target.is_file():
        return sha256(target)  # cheap, and right even where the file was exchanged
    manifest = read_manifest(target)
    if manifest is not None:
        files = {name: record.sha256 for name, record in manifest.files.items() if _counts(name)}
    else:
        paths = (*target.iterdir(), *target.glob("additional_chat_templates/*"))
        names = {path.relative_to(target).as_posix(): path for path in paths if path.is_file()}
        files = {name: sha256(path) for name, path in names.items() if _counts(name)}
    lines = (f"{name} {digest}\n" for name, digest in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _counts(name: str) -> bool:
    return (
        name.endswith((".json", ".safetensors", ".onnx", ".data", ".jinja"))
        and name != "manifest.json"
    )


def _part(target: Path, name: str) -> Path:
    return target if target.suffix == ".gguf" else target / name


def _record(path: Path) -> FileRecord:
    _fsync(path)
    return FileRecord(sha256=sha256(path), size=path.stat().st_size)


def sweep(folder: Path) -> None:
    """Remove what killed runs left in a folder of results, of whatever target."""
    if folder.is_dir():
        found = (re.fullmatch(r"\.(.+)\.partial-\d+(-old)?", p.name) for p in folder.iterdir())
        for name in sorted({match[1] for match in found if match}):
            _sweep(folder / name)


def _sweep(target: Path) -> None:
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


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def kilobytes(file: str) -> dict[str, int]:
    """Name -> bytes, of a file of `Name: 123 kB` lines as in /proc; empty where there is none."""
    found = {}
    with contextlib.suppress(OSError):
        for line in Path(file).read_text().splitlines():
            name, _, rest = line.partition(":")
            if rest.endswith("kB"):
                found[name] = int(rest.split()[0]) * 1024
    return found


def _meminfo(key: str) -> int:
    try:
        return kilobytes("/proc/meminfo")[key]
    except KeyError:
        raise ResourceError(f"/proc/meminfo has no {key}") from None
