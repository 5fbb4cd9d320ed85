"""A result and places to look for its parents -> every hash again: which files are still those of the manifests.

    for check in verify(Path("out/q4_k_m.gguf"), look_in=[Path("adapter")]):
        print(check.role, check.path, check.state, check.problems)

A manifest names its parents by their sha256, not by their place. Parents are looked for at the paths that
the options record, beside the result, and at the places that are given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeft import store
from edgeft.data.sources import data_files, data_identity
from edgeft.data.split_names import Split
from edgeft.errors import EdgeftError, InputError
from edgeft.records import Manifest

State = Literal["ok", "damaged", "not found"]
RECORDED = ("base", "data", "validation_data", "validation", "calibration", "adapter")
"""options that may name the place of a parent"""
MODEL_FILES = ("config.json", "adapter_config.json", "manifest.json")
SPLITS: dict[str, Split] = {"data": "train", "validation_data": "validation"}
"""role of a parent that may be a folder of data files -> the split that was read"""


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


def verify(target: Path, look_in: Sequence[Path] = ()) -> list[Check]:
    """The result, then its parents, each before its own parents.

    InputError for a result without a manifest.
    """
    manifest = store.read_manifest(target)
    if manifest is None:
        raise InputError(
            f"{target} has no manifest, so nothing says what it should be",
            "only what edgeft made has one; it is moved together with the file",
        )
    return list(_Lineage(look_in).checks(manifest.kind, 0, "", target, manifest))


class _Lineage:
    """Hashes each file once, however many parents are looked for."""

    def __init__(self, look_in: Sequence[Path]) -> None:
        self._look_in = look_in
        self._hashes: dict[tuple[Path, str], str] = {}

    def checks(
        self, role: str, depth: int, identity: str, path: Path, manifest: Manifest
    ) -> Iterator[Check]:
        problems = tuple(store.damaged(path, manifest))
        yield Check(role, depth, identity, path, "damaged" if problems else "ok", problems)
        for parent, wanted in manifest.parents.items():
            found = self._find(parent, wanted, path, manifest)
            of_parent = found and store.read_manifest(found)
            if found and of_parent:
                yield from self.checks(parent, depth + 1, wanted, found, of_parent)
            else:  # without a manifest its hash was just computed from its files
                yield Check(parent, depth + 1, wanted, found, "ok" if found else "not found")

    def _find(self, role: str, wanted: str, child: Path, manifest: Manifest) -> Path | None:
        places = dict.fromkeys(_places(child, manifest, self._look_in))
        return next((place for place in places if self._identity(place, role) == wanted), None)

    def _identity(self, place: Path, role: str) -> str:
        """The hash that a child names a file or folder by; "" for what cannot be a parent."""
        key = (place, role if place.is_dir() else "")
        if key not in self._hashes:
            try:
                self._hashes[key] = _identity(place, role)
            except (EdgeftError, OSError):
                self._hashes[key] = ""
        return self._hashes[key]


def _places(path: Path, manifest: Manifest, look_in: Sequence[Path]) -> Iterator[Path]:
    """Where parents may lie."""
    yield from look_in
    for name in RECORDED:
        recorded = manifest.options.get(name)
        if isinstance(recorded, str) and recorded:
            yield Path(recorded).expanduser()
            yield path.parent / Path(recorded).name
    for folder in (path.parent, path.parent.parent):
        for entry in sorted(folder.iterdir()):
            if entry != path and (
                entry.is_dir() or entry.suffix != ".gguf" or entry.stem == "imatrix"
            ):
                yield entry


def _identity(place: Path, role: str) -> str:
    if place.is_file():
        return store.identity(place)
    if any((place / name).is_file() for name in MODEL_FILES):
        return store.identity(place)
    split = SPLITS.get(role)
    return data_identity(data_files(place, split)) if split else ""
