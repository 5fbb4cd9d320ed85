"""A workspace folder -> what lies in it: data, adapters, bases, artifacts, reports, sweeps, unfinished runs.

    for noun in find_nouns(Path("workspace")):
        print(noun.kind, noun.path, noun.parents)

Names and manifests decide; no weights are read. What was made on the command line is listed as what the
studio made.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from edgeft.data.documents import TEXT_SUFFIXES
from edgeft.data.reading import holds_rows
from edgeft.errors import EdgeftError, InputError
from edgeft.export.model_card import materials_path
from edgeft.files import read_json, sha256
from edgeft.records import Manifest
from edgeft.store import identity, manifest_path, read_manifest
from edgeft.train.checkpoints import REQUEST_FILE
from edgeft.train.options import WORK_SUFFIX

Kind = Literal["data", "base", "adapter", "artifact", "report", "sweep", "unfinished"]
MAX_DEPTH = 5
"""folders below the workspace that are looked into"""
MAX_ENTRIES = 20_000
"""files and folders that are looked at"""
MAX_HASHED_BYTES = 64_000_000
"""a data file that is larger is not hashed for the graph"""
NO_DATA = ("report.json", "sweep.json", "config.json", "tokenizer.json", "tokenizer_config.json")
"""JSON files that are no rows"""


@dataclass(frozen=True)
class Noun:
    """One thing in the workspace."""

    path: str
    """relative to the workspace, with /"""
    kind: Kind
    size: int
    """bytes"""
    changed: float
    """seconds since 1970"""
    identity: str = ""
    """sha256 that children name it by; "" = unknown"""
    parents: dict[str, str] = field(default_factory=dict)
    """role -> identity"""
    names: dict[str, str] = field(default_factory=dict)
    """role -> name of that parent, where the options tell it"""
    facts: dict[str, Any] = field(default_factory=dict)
    """of its manifest or report"""
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


def find_nouns(root: Path) -> list[Noun]:
    """In the order of their paths. What cannot be read is left out."""
    return sorted(_walk(root, root, 0, [MAX_ENTRIES]), key=lambda noun: noun.path)


def _walk(root: Path, folder: Path, depth: int, left: list[int]) -> Iterator[Noun]:
    of_folder = _manifest(folder)
    splits = of_folder if of_folder and of_folder.kind == "dataset" else None
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        left[0] -= 1
        if left[0] < 0:
            return
        if entry.name.startswith("."):
            continue
        path = folder / entry.name
        with contextlib.suppress(OSError, UnicodeEncodeError):
            path.name.encode()  # a page cannot show a name that is no UTF-8
            if not entry.is_dir():
                if entry.is_file() and (noun := _file(root, path)):
                    yield _split_of(noun, splits) if splits else noun
            elif noun := _folder(root, path):
                yield noun
            elif depth < MAX_DEPTH and not entry.is_symlink():
                yield from _walk(root, path, depth + 1, left)


def _file(root: Path, path: Path) -> Noun | None:
    if path.name == "report.json":
        return _report(root, path)
    if path.suffix == ".gguf" and path.name != "imatrix.gguf":
        return _of_manifest(root, path, "artifact", _manifest(path))
    is_rows = holds_rows(path) and path.name not in NO_DATA
    if is_rows or path.suffix.lower() in TEXT_SUFFIXES:
        manifest = _manifest(path) if path.suffix in (".jsonl", ".txt") else None
        noun = _of_manifest(root, path, "data", manifest)
        if not noun.identity and noun.size <= MAX_HASHED_BYTES:
            return replace(noun, identity=sha256(path))
        return noun
    return None


def _split_of(noun: Noun, splits: Manifest) -> Noun:
    """A file of `edgeft data split`: the manifest of its folder says what it was made from."""
    record = splits.files.get(noun.name)
    if record is None:
        return noun
    return replace(noun, identity=record.sha256, parents=splits.parents, options=splits.options)


def _folder(root: Path, path: Path) -> Noun | None:
    """What a folder is; None where it is only a place for others."""
    if path.suffix == WORK_SUFFIX and (path / REQUEST_FILE).is_file():
        with contextlib.suppress(EdgeftError):
            options = read_json(path / REQUEST_FILE).get("options", {})
            return Noun(
                _relative(root, path), "unfinished", _size(path), _changed(path), options=options
            )
    if (path / "sweep.json").is_file():
        with contextlib.suppress(EdgeftError):
            facts = read_json(path / "sweep.json")
            return Noun(_relative(root, path), "sweep", _size(path), _changed(path), facts=facts)
    manifest = _manifest(path)
    if manifest and manifest.kind in ("adapter", "artifact", "base"):
        return _of_manifest(root, path, manifest.kind, manifest)  # type: ignore[arg-type]
    if manifest is None and (path / "adapter_config.json").is_file():
        return _of_manifest(root, path, "adapter", None)
    if manifest is None and (path / "config.json").is_file() and any(path.glob("*.safetensors")):
        return _of_manifest(root, path, "base", None)
    return None


def _manifest(path: Path) -> Manifest | None:
    """None also for a broken one: `edgeft verify` says what is wrong with it."""
    try:
        return read_manifest(path)
    except (InputError, OSError, UnicodeDecodeError):
        return None


def _of_manifest(root: Path, path: Path, kind: Kind, manifest: Manifest | None) -> Noun:
    noun = Noun(_relative(root, path), kind, _size(path), _changed(path))
    if manifest is None:
        return noun
    record = manifest.files.get(path.name)
    name = record.sha256 if record and path.is_file() else ""
    if path.is_dir():
        name = identity(path)  # from the manifest: no file is read
    names = {
        role: relative_text(root, str(manifest.options[role]))
        for role in manifest.parents
        if isinstance(manifest.options.get(role), str)
    }
    return Noun(
        noun.path, kind, noun.size, noun.changed, name, manifest.parents, names, manifest.facts,
        manifest.options,
    )  # fmt: skip


def relative_text(root: Path, text: str) -> str:
    """A path relative to the workspace where it lies in it, else as it is."""
    try:
        return Path(text).relative_to(root).as_posix()
    except ValueError:
        return text


def _report(root: Path, path: Path) -> Noun | None:
    try:
        facts = read_json(path)
        arms = facts["arms"]
        parents = {arm["name"]: arm["identity"] for arm in arms if arm.get("identity")}
        kept = {key: facts.get(key) for key in ("outcome", "ship", "reason", "task", "created")}
    except (EdgeftError, KeyError, TypeError):
        return None
    paths = {arm["name"]: str(arm.get("path", "")) for arm in arms}
    return Noun(
        _relative(root, path), "report", _size(path), _changed(path), "", parents, paths, kept
    )


def _relative(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(p.lstat().st_size for p in path.rglob("*") if p.is_file())


def _changed(path: Path) -> float:
    manifest = manifest_path(path)
    return (manifest if manifest.is_file() else path).stat().st_mtime


def files_of(path: Path) -> Sequence[Path]:
    """A noun's path and what belongs to it: the manifest, the Modelfile and the bill of materials beside an
    artifact, the page of a report."""
    if path.name == "report.json":
        beside = [path.with_suffix(".html"), path.with_suffix(".md")]
    elif path.is_dir() and not path.is_symlink():
        beside = [materials_path(path)]
    else:
        manifest, modelfile = f"{path.name}.manifest.json", path.with_suffix(".Modelfile")
        beside = [path.with_name(manifest), modelfile, materials_path(path)]
    return [path, *(other for other in beside if other.is_file())]
