"""A result and places to look for its parents -> every hash again: which files are still those of the manifests.

    for check in verify(Path("out/q4_k_m.gguf"), look_in=[Path("adapter")]):
        print(check.role, check.path, check.state, check.problems)

A manifest names its parents by their sha256, and its options name the places of some. Parents are looked for
there, beside the result, and at the places that are given; never on the hub.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeft import files, store
from edgeft.data.documents import TEXT_SUFFIXES
from edgeft.data.layouts import layout_of
from edgeft.data.reading import holds_rows
from edgeft.data.sources import data_files, training_identity
from edgeft.data.split_names import Split
from edgeft.errors import EdgeftError, InputError, ManifestError
from edgeft.records import Manifest
from edgeft.report import signature

State = Literal["ok", "damaged", "not found"]
CONFIGS = {"base": "config.json", "adapter": "adapter_config.json"}
"""role of a parent that is a model folder -> a file that is in it"""
NAMES = {
    "validation": "validation", "calibration": "calibration", "imatrix": "imatrix",
    "calibration_text": "calibration_text",
    "file": "source",
}  # fmt: skip
"""role -> option that holds the name of a file without its folder"""
SPLITS: dict[str, Split] = {"data": "train", "validation_data": "validation"}
"""role in a training that may be a folder of data files -> the split that was read"""


@dataclass(frozen=True)
class Check:
    """A result or one of its parents."""

    role: str
    """of a parent, such as base; "artifact" and the like for the result itself"""
    depth: int
    """0 for the result, 1 for its parents, and so on"""
    identity: str
    """sha256 by which the child names it; "" for the result itself"""
    path: Path | None
    """None where it was not found"""
    state: State
    problems: tuple[str, ...] = ()


def verify(
    target: Path, look_in: Sequence[Path] = (), public_key: Path | None = None
) -> list[Check]:
    """The result, its signature where there is a key, then its parents, each before its own parents.

    InputError for a result without a manifest, or of a newer edgeft, and for a file that is no key.
    """
    files.forget_hashes()
    try:
        manifest = store.read_manifest(target)
    except ManifestError as error:
        return [Check("result", 0, "", target, "damaged", (error.message,))]
    if manifest is None and not os.path.exists(target):
        raise InputError(f"no such file: {target}", "check the path")
    if manifest is None:
        raise InputError(
            f"{target} has no manifest, so nothing says what it should be",
            "only what edgeft made has one; it is moved together with the file",
        )
    result, *parents = _Lineage(look_in).checks(manifest.kind, 0, "", target, manifest)
    if public_key is None:
        return [result, *parents]
    problem = signature.problem(target, manifest, public_key)
    path, state = signature.signature_path(target), "damaged" if problem else "ok"
    signed = Check("signature", 1, "", path, state, (problem,) if problem else ())  # type: ignore[arg-type]
    return [result, signed, *parents]


class _Lineage:
    def __init__(self, look_in: Sequence[Path]) -> None:
        self._look_in = look_in
        self._found: dict[str, Path] = {}
        """identity -> path of the parents so far"""

    def checks(
        self,
        role: str,
        depth: int,
        identity: str,
        path: Path,
        manifest: Manifest,
        children: tuple[str, ...] = (),
    ) -> Iterator[Check]:
        """`children`: real paths of what it was a parent of; nothing is its own parent."""
        problems = tuple(store.damaged(path, manifest))
        yield Check(role, depth, identity, path, "damaged" if problems else "ok", problems)
        children = (*children, os.path.realpath(path))
        # The adapter names the base's place, the artifact does not.
        roles = sorted(manifest.parents, key=lambda role: role == "base")
        of_role = {
            role: list(self._parent(role, depth + 1, path, manifest, children)) for role in roles
        }
        for parent in manifest.parents:
            yield from of_role[parent]

    def _parent(
        self, role: str, depth: int, child: Path, manifest: Manifest, children: tuple[str, ...]
    ) -> Iterator[Check]:
        identity = manifest.parents[role]
        path = self._find(role, child, manifest, children)
        if path is None:
            yield _lost(role, depth, child, manifest, children)
            return
        self._found[identity] = path
        try:
            of_parent = store.read_manifest(path)
        except ManifestError as error:
            yield Check(role, depth, identity, path, "damaged", (error.message,))
            return
        if of_parent:
            yield from self.checks(role, depth, identity, path, of_parent, children)
        else:  # its hash was just computed from its files
            yield Check(role, depth, identity, path, "ok")

    def _find(
        self, role: str, child: Path, manifest: Manifest, children: tuple[str, ...]
    ) -> Path | None:
        identity = manifest.parents[role]
        for path in self._places(role, child, manifest):
            try:
                if os.path.realpath(path) not in children and identity == _identity(
                    path, role, manifest
                ):
                    return path
            except (EdgeftError, OSError):
                continue  # no such thing, or another one that cannot be read
        return None

    def _places(self, role: str, child: Path, manifest: Manifest) -> Iterator[Path]:
        """Where a parent may lie, the likeliest place first; some do not exist."""
        if path := self._found.get(manifest.parents[role]):
            yield path
        for path in self._look_in:
            yield path
            if _name(role) not in CONFIGS:
                yield from _data_files(path)
        yield from (path for path, _ in _recorded(role, child, manifest))
        for folder in _folders(child):
            for option in _paths(NAMES.get(_name(role), _name(role)), manifest):
                yield _without_weight(folder / option.name)
            yield from _siblings(folder, _name(role))


def _lost(
    role: str, depth: int, child: Path, manifest: Manifest, children: tuple[str, ...]
) -> Check:
    """A parent that no place holds: damaged where something else is at its recorded place."""
    identity = manifest.parents[role]
    for path, is_exact in _recorded(role, child, manifest):
        if not is_exact or not os.path.exists(path) or os.path.realpath(path) in children:
            continue
        problem = f"{path} has other bytes than when it was read"
        try:
            _identity(path, role, manifest)
        except EdgeftError as error:
            problem = error.message
        except OSError as error:
            problem = f"{path} cannot be read: {error.strerror}"
        return Check(role, depth, identity, path, "damaged", (problem,))
    return Check(role, depth, identity, None, "not found")


def _identity(path: Path, role: str, manifest: Manifest) -> str:
    """The hash that the manifest of a child names a file or folder by; "" for what cannot be this parent."""
    name = _name(role)
    if os.path.isfile(path):
        return "" if name in CONFIGS else store.identity(path)
    if not os.path.isdir(path):
        return ""  # also a hub id: nothing is downloaded
    if name in CONFIGS and any(map(os.path.isfile, _model_marks(path, *CONFIGS.values()))):
        try:
            return store.identity(path)
        except ManifestError:
            return store.identity(path, use_manifest=False)
    if name in SPLITS and isinstance(manifest.options.get(name), str):
        layout = layout_of(manifest.options)
        return training_identity(path, SPLITS[name], layout, notes=False)
    return ""


def _recorded(role: str, child: Path, manifest: Manifest) -> Iterator[tuple[Path, bool]]:
    """Where the options say that a parent lay: (path, whether of this parent, not of another of its kind)."""
    name = _name(role)
    if name in NAMES:
        return
    roles = [parent for parent in manifest.parents if _name(parent) == name]
    # Relative paths begin where the command ran: here, or at or above its result.
    for root in (Path(), *_folders(child)):
        paths = [root / path for path in _paths(name, manifest)]
        if isinstance(manifest.options.get(name), list):
            split: Split | None = None if name == "against" else "train"
            paths = [f for path in paths for f in _data_files(_without_weight(path), split)]
        is_complete = len(paths) == len(roles)
        for place, path in enumerate(paths):
            yield path, is_complete and roles.index(role) == place


def _paths(option: str, manifest: Manifest) -> list[Path]:
    """The paths that an option records."""
    value = manifest.options.get(option)
    paths = []
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and text:
            with contextlib.suppress(InputError):  # ~name of another machine
                paths.append(files.expand_user(text))
    return paths


def _without_weight(path: Path) -> Path:
    """FILE of the FILE=WEIGHT of a mix."""
    name, _, _ = path.name.rpartition("=")
    return path.parent / name if name and not os.path.exists(path) else path


def _data_files(path: Path, split: Split | None = None) -> list[Path]:
    """The data files of a folder, [] where it has none; any other path as it is."""
    if not os.path.isdir(path):
        return [path]
    try:
        return data_files(path, split, notes=False)
    except InputError:
        return []


def _siblings(folder: Path, name: str) -> Iterator[Path]:
    """What may be a parent by its name: model folders or data files."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError:
        return
    for entry in entries:
        if name in CONFIGS:
            is_candidate = any(map(os.path.isfile, _model_marks(entry, CONFIGS[name])))
        elif name == "imatrix":
            is_candidate = entry.stem == name
        else:
            is_candidate = holds_rows(entry) or entry.suffix.lower() in TEXT_SUFFIXES
        if is_candidate:
            yield entry


def _model_marks(folder: Path, *configs: str) -> list[Path]:
    """The files by which a folder is known as that of a model."""
    return [folder / name for name in ("manifest.json", *configs)]


def _folders(path: Path) -> tuple[Path, Path]:
    """The folder that holds a result, and the one above; relative where the path is."""
    return _above(path), _above(_above(path))


def _above(path: Path) -> Path:
    return path / ".." if path.name in ("", "..") else path.parent


def _name(role: str) -> str:
    """Of adapter 2 it is adapter."""
    return role.partition(" ")[0]
