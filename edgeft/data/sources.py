"""What names data (a file, a folder, a hub id) -> its data files, and what identifies them.

data_files(Path("chats.jsonl"))                     [chats.jsonl]
data_files(Path("folder"), "train")                 its train* files, or those of no split, by name
data_files(Path("owner/name:config"), "train")      downloaded into the hub's cache (`edgeft.data.hub`)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from edgeft.data.hub import hub_files, hub_id
from edgeft.data.layouts import Layout, text_suffixes
from edgeft.data.reading import holds_rows
from edgeft.data.split_names import Split, of_split
from edgeft.errors import InputError
from edgeft.files import sha256
from edgeft.progress import say_once

NAMED_FILES = 10
"""files that a message names"""


def data_files(
    path: Path, split: Split | None = None, suffixes: Sequence[str] = (), notes: bool = True
) -> list[Path]:
    """The file itself, or the data files of a folder or a hub id, by name.

    `split`: the one that is read where names tell splits apart, None = all. `suffixes`: of files that count
    beside those of rows. `notes` name what is read and what is not. InputError where there is no such file.
    """
    if path.is_file():
        return [path]
    if path.is_dir():
        return _folder_files(path, split, suffixes, notes)
    if path.exists():
        raise InputError(f"{path} is a pipe or a device", "write the rows to a file first")
    if name := hub_id(path):
        return hub_files(name, split, suffixes)
    raise InputError(f"no such data file: {path}", "check the path")


def _folder_files(
    folder: Path, split: Split | None, suffixes: Sequence[str], notes: bool
) -> list[Path]:
    names = [
        file.relative_to(folder).as_posix()
        for file in sorted(folder.rglob("*"))
        if holds_rows(file) or file.suffix.lower() in suffixes
    ]
    if not names:
        raise InputError(
            f"no data file in {folder}",
            "JSONL, JSON, CSV, Parquet or Arrow; .txt for --objective pretrain",
        )
    chosen = of_split(names, split) if split else names
    if not chosen:
        raise InputError(
            f"{folder} holds no {split} files, but {_listed(names)}",
            f"name the file: {folder / names[0]}",
        )
    others = [name for name in names if name not in chosen]
    if notes and len(names) > 1 and split:
        left_out = f"; not read: {_listed(others)}" if others else ""
        say_once(f"{folder}: reads {_listed(chosen)}{left_out}")
    return [folder / name for name in chosen]


def _listed(names: Sequence[str]) -> str:
    more = len(names) - NAMED_FILES
    return ", ".join(names[:NAMED_FILES]) + (f" and {more} more" if more > 0 else "")


def training_identity(path: Path, split: Split, layout: Layout, notes: bool = True) -> str:
    """What names the data of a training in its manifest: the `data_identity` of the files that it reads.

    `layout`: of its rows. InputError and `notes` as `data_files`.
    """
    return data_identity(data_files(path, split, text_suffixes(layout), notes))


def data_identity(files: Sequence[Path]) -> str:
    """sha256 of a file; of several one hash over their names and hashes, in order."""
    if len(files) == 1:
        return sha256(files[0])
    lines = (f"{file.name} {sha256(file)}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
