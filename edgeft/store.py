"""A target path and what makes it -> a result with its manifest, complete or absent.

    with store.writing(out, kind="artifact", options=options, parents=parents) as draft:
        draft.path.write_bytes(...)
        draft.facts["beta"] = 1.0

The result is written beside the target, flushed to the disk and renamed into place; the manifest comes
last. Whatever interrupts that leaves the old state. A second run with the same options and parents
finds the manifest (`find_complete`) and has nothing to do.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgeft import __version__
from edgeft.errors import InputError, ManifestError, StaleError
from edgeft.files import (
    claimed,
    dead_partials,
    fsync,
    partial_path,
    partial_targets,
    read_text,
    remove,
    replace_folder,
    sha256,
    sweep_target,
    write_text,
)
from edgeft.records import SCHEMA, FileRecord, Manifest

SHARED_WAIT_S = 3600.0
"""how long a run waits at most until another one has made what both need"""
MAX_MANIFEST_BYTES = 64_000_000
"""of a manifest, which lists every file of a result and what was measured"""


@dataclass
class Draft:
    """A result while it is written."""

    path: Path
    """where to write: a folder that exists, or a file that does not exist yet"""
    facts: dict[str, Any] = field(default_factory=dict)
    """what was measured on the way, for the manifest"""


def manifest_path(target: Path) -> Path:
    """`manifest.json` in a folder; `NAME.gguf.manifest.json` beside a file."""
    if _is_file_target(target):
        return target.with_name(target.name + ".manifest.json")
    return target / "manifest.json"


def read_manifest(target: Path) -> Manifest | None:
    """The manifest of a complete result, None where there is none.

    ManifestError for a broken one, InputError for one of a newer edgeft.
    """
    path = manifest_path(target)
    try:
        manifest = Manifest.from_json(read_text(path, MAX_MANIFEST_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except InputError as error:
        raise ManifestError(error.message, "delete it and run again") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ManifestError(
            f"{path} is not a manifest: {error}", "delete it and run again"
        ) from None
    if manifest.schema > SCHEMA:
        raise InputError(f"{path} was written by a newer edgeft", "upgrade edgeft")
    return manifest


def find_complete(
    target: Path, kind: str, options: dict[str, Any], parents: dict[str, str]
) -> Manifest | None:
    """The manifest where `target` already is the result of these options and parents, else None.

    Its files must exist with the recorded sizes; their hashes are not computed.
    """
    _finish_killed(target)
    return _complete(target, kind, options, parents)


def _complete(
    target: Path, kind: str, options: dict[str, Any], parents: dict[str, str]
) -> Manifest | None:
    """As `find_complete`, while this process is writing the target."""
    manifest = read_manifest(target)
    if manifest is None or (manifest.kind, manifest.parents) != (kind, parents):
        return None
    if manifest.options != _as_json(options):
        return None
    paths = {name: _file_path(target, name) for name in manifest.files}
    complete = all(
        path.is_file() and path.stat().st_size == manifest.files[name].size
        for name, path in paths.items()
    )
    return manifest if complete else None


@contextlib.contextmanager
def writing(
    target: Path,
    *,
    kind: str,
    options: dict[str, Any],
    parents: dict[str, str],
    overwrite: bool = False,
) -> Iterator[Draft]:
    """Yield a `Draft` to write; on a clean exit put it at `target` with its manifest.

    `kind`, `options` and `parents` (role -> identity) go into the manifest. StaleError where something
    else is at `target` already and `overwrite` is off, or where another run is writing it.
    """
    place = _linked(target)
    with claimed(target):
        sweep_target(place)
        _finish_killed(target)
        check_free(target, kind, options, parents, overwrite)
        temp = partial_path(place)
        if not _is_file_target(target):
            temp.mkdir()
        try:
            draft = Draft(temp)
            yield draft
            manifest = Manifest(
                kind=kind,
                options=_as_json(options),
                files=_file_records(target, temp),
                parents=parents,
                facts=draft.facts,
                edgeft=__version__,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
            )
            # A file system without locks lets another run write the target meanwhile.
            if _complete(target, kind, options, parents) is None:
                check_free(target, kind, options, parents, overwrite)
            if _is_file_target(target):
                _replace_file(temp, place, manifest_path(target), manifest)
            else:
                _keep_notes(place, temp)
                write_text(temp / "manifest.json", manifest.to_json())
                replace_folder(temp, place)
        finally:
            remove(temp)


@contextlib.contextmanager
def writing_shared(
    target: Path, *, kind: str, options: dict[str, Any], parents: dict[str, str]
) -> Iterator[Draft | None]:
    """As `writing`, for what several runs need, such as an imported base: one makes it, the others wait.

    Yields None where it is complete. What else is at `target` is replaced.
    """
    request: dict[str, Any] = {"kind": kind, "options": options, "parents": parents}
    if find_complete(target, **request):
        yield None
        return
    with claimed(target, SHARED_WAIT_S):
        if find_complete(target, **request):
            yield None
            return
        with writing(target, overwrite=True, **request) as draft:
            yield draft


def _file_records(target: Path, temp: Path) -> dict[str, FileRecord]:
    """Name -> record of each file written to `temp`. Their names and content are flushed to the disk."""
    if _is_file_target(target):
        return {target.name: _file_record(temp)}
    paths = sorted(temp.rglob("*"))
    readable = temp.stat().st_mode & 0o666
    for path in paths:
        if path.is_dir():
            fsync(path)
        elif path.stat().st_mode & 0o666 != readable:
            path.chmod(readable)  # safetensors' own files are readable by their owner alone
    return {str(path.relative_to(temp)): _file_record(path) for path in paths if path.is_file()}


def _keep_notes(old: Path, new: Path) -> None:
    """Copy what somebody added to the folder that is replaced and no model reads, such as a README.md."""
    manifest = read_manifest(old)
    if manifest is None:
        return
    names = _counted_files(old)
    for name in set(names) - set(_model_files(names)) - {*manifest.files, "manifest.json"}:
        copy = new / name
        if not copy.exists():
            copy.parent.mkdir(exist_ok=True)
            shutil.copy2(old / name, copy)
            fsync(copy)
            fsync(copy.parent)


def _linked(target: Path) -> Path:
    """Where a target lies that is a link: the result is written there, and the link is kept."""
    if not target.is_symlink():
        return target
    place = Path(os.path.realpath(target))
    if place.is_symlink() or not place.parent.is_dir():
        raise StaleError(f"{target} is a link that leads nowhere", "remove it")
    return place


def _replace_file(temp: Path, place: Path, manifest_file: Path, manifest: Manifest) -> None:
    """Put file and manifest in place. `_finish_killed` ends what a kill between the renames leaves.

    Each name is on the disk before the next one changes, so that a loss of power leaves no more.
    """
    pending = partial_path(manifest_file)
    old = pending.with_name(f"{pending.name}-old")
    in_place = False
    try:
        pending.write_text(manifest.to_json(), encoding="utf-8", errors="backslashreplace")
        fsync(pending)
        # No manifest may stand beside a file that it does not describe.
        if manifest_file.exists():
            os.replace(manifest_file, old)
        fsync(manifest_file.parent)
        os.replace(temp, place)
        in_place = True
        try:
            fsync(place.parent)
        finally:  # a file in place has its manifest, even where the disk does not confirm the name
            try:
                os.replace(pending, manifest_file)
            except OSError:
                pending.rename(manifest_file)
        fsync(manifest_file.parent)
    finally:
        if in_place:
            old.unlink(missing_ok=True)
        else:
            if old.exists():
                old.rename(manifest_file)
            pending.unlink(missing_ok=True)


def _finish_killed(target: Path) -> None:
    """Name the manifest of a killed run where its file is in place, else put the old result back.

    What else killed runs left is removed, so a complete result has nothing beside it.
    """
    if not target.parent.is_dir():
        return
    named_last = manifest_path(target) if _is_file_target(target) else target
    if not dead_partials(named_last):
        return
    with contextlib.suppress(StaleError, OSError), claimed(target):
        if _is_file_target(target):
            _name_pending_manifest(target, named_last)
        sweep_target(named_last)


def _name_pending_manifest(target: Path, manifest_file: Path) -> None:
    """Put the manifest of a killed run in place where it describes the file that is there."""
    for pending, is_old in dead_partials(manifest_file):
        if is_old or manifest_file.exists() or not target.is_file():
            continue
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            record = Manifest.from_json(pending.read_text(encoding="utf-8")).files[target.name]
            if (target.stat().st_size, sha256(target)) == (record.size, record.sha256):
                os.replace(pending, manifest_file)


def sweep(folder: Path) -> None:
    """Finish or remove partial results of killed runs in a folder, whatever their targets."""
    for partial in partial_targets(folder):
        target = partial.with_name(partial.name.removesuffix(".manifest.json"))
        # In another container a process that lives may have the number of a dead one.
        with contextlib.suppress(StaleError), claimed(target):
            _finish_killed(target)
            sweep_target(partial)


def damaged(target: Path, manifest: Manifest) -> list[str]:
    """One line for each file that is not the one of its manifest, or that the manifest of a folder lacks.

    Every file is read whole. Files that do not change what a model answers may be added.
    """
    problems = []
    for name, record in manifest.files.items():
        path = _file_path(target, name)
        if not path.is_file():
            problems.append(f"{path} is missing")
        elif (size := path.stat().st_size) != record.size:
            problems.append(f"{path} has {size} bytes, not {record.size}")
        elif sha256(path) != record.sha256:
            problems.append(f"{path} has other bytes than when it was written")
    if target.is_dir():
        added = sorted(set(_model_files(_counted_files(target))) - set(manifest.files))
        problems += [f"{target / name} was added" for name in added]
    return problems


def check_files(target: Path) -> None:
    """InputError where a file is not the one that the manifest names; nothing without a manifest."""
    manifest = read_manifest(target)
    for problem in damaged(target, manifest) if manifest else ():
        raise InputError(problem, "copy the result again, its manifest last")


def check_free(
    target: Path, kind: str, options: dict[str, Any], parents: dict[str, str], overwrite: bool
) -> None:
    """StaleError where `writing` would refuse because of what is at `target`."""
    folder = target.is_dir() and any(target.iterdir())
    if not (folder or target.is_file()):
        if _is_file_target(target) and target.is_dir():
            raise StaleError(f"{target} is a folder", "choose another output")
        return
    manifest = read_manifest(target)
    if folder and (manifest is None or manifest.kind != kind):
        raise StaleError(f"{target} was not made by this command", "choose another output")
    if overwrite:
        return
    holds = "something else"
    if manifest is not None and manifest.kind == kind:
        pairs = ((_as_json(options), manifest.options), (parents, manifest.parents))
        names = {
            name
            for now, then in pairs
            for name in {**now, **then}
            if now.get(name) != then.get(name)
        }
        holds = "a result that was changed"
        if names:
            holds = f"a result with other {', '.join(sorted(names))}"
        elif _complete(target, kind, options, parents):
            raise StaleError(f"{target} was written by another run meanwhile", "it is complete")
    raise StaleError(f"{target} already holds {holds}", "--overwrite, or choose another output")


def check_not_foreign(file: Path, overwrite: bool) -> None:
    """StaleError for an existing file without a manifest, unless `overwrite`."""
    _finish_killed(file)
    if file.exists() and read_manifest(file) is None and not overwrite:
        raise StaleError(
            f"{file} is there already", "move it away, --overwrite, or choose another output"
        )


def identity(target: Path, use_manifest: bool = True) -> str:
    """The hexadecimal SHA-256 that names an artifact as a parent.

    Of a file it is the hash of its content. Of a folder it is one hash over the names and hashes of
    weights, JSON and templates. These come from the manifest, or without one from the files, with the
    same result: a model keeps its identity when it is copied without its manifest. ManifestError for a broken
    one, unless it is not to be used.
    """
    if target.is_file():
        return sha256(target)  # cheap, and right where the file was replaced under its manifest
    manifest = read_manifest(target) if use_manifest else None
    if manifest is not None:
        hashes = {name: record.sha256 for name, record in manifest.files.items()}
    else:
        hashes = {name: sha256(target / name) for name in _model_files(_counted_files(target))}
    lines = (f"{name} {hashes[name]}\n" for name in sorted(_model_files(hashes)))
    text = "".join(lines).encode("utf-8", "surrogatepass")  # names of files that are no UTF-8
    return hashlib.sha256(text).hexdigest()


def _counted_files(folder: Path) -> list[str]:
    """The names of the files among which those of the model are."""
    paths = (*folder.iterdir(), *folder.glob("additional_chat_templates/*"))
    return [path.relative_to(folder).as_posix() for path in paths if path.is_file()]


def _model_files(names: Collection[str]) -> list[str]:
    """The files of a folder that can change what the model answers.

    Those of torch.save can where no others hold weights.
    """
    suffixes = (".json", ".safetensors", ".onnx", ".data", ".jinja")
    files = [name for name in names if name.endswith(suffixes) and name != "manifest.json"]
    if any(name.endswith((".safetensors", ".onnx")) for name in files):
        return files
    return files + [name for name in names if re.match(r"(adapter|pytorch)_model.*\.bin$", name)]


def _is_file_target(target: Path) -> bool:
    """Whether a result is one file (GGUF, JSONL of a dataset, or text) and not a folder."""
    return target.suffix in (".gguf", ".jsonl", ".txt")


def _file_path(target: Path, name: str) -> Path:
    return target if _is_file_target(target) else target / name


def _file_record(path: Path) -> FileRecord:
    fsync(path)
    return FileRecord(sha256=sha256(path), size=path.stat().st_size)


def _as_json(options: dict[str, Any]) -> dict[str, Any]:
    """Options as the manifest holds them: tuples become lists."""
    value: dict[str, Any] = json.loads(json.dumps(options))
    return value
