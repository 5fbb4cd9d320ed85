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
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgeft import __version__
from edgeft.errors import InputError, StaleError
from edgeft.files import fsync, remove, sha256, sweep_target, write_text
from edgeft.records import SCHEMA, FileRecord, Manifest


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
        sweep_target(target)
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
        fsync(target.parent)
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
    fsync(path)
    return FileRecord(sha256=sha256(path), size=path.stat().st_size)
