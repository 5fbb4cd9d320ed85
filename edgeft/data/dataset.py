"""Rows -> a Dataset on disk: JSONL with a manifest, and what `clean`, `split` and `mix` share.

Each writes its result whole or not at all (`edgeft.store.writing`, kind "dataset"); the manifest holds the
options, the counts, and as parents the identities of the files that were read.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from edgeft import store
from edgeft.data.hub import pinned
from edgeft.data.items import Item
from edgeft.data.rows import BadRow, BadRows, report_bad_rows
from edgeft.errors import InputError

KIND = "dataset"
MAX_BAD_ROWS = 1000
"""bad rows after which nothing more is read where they stop the command"""


def line_of(raw: Any) -> str:
    """A row as a line of JSONL. Half a surrogate pair is written as an escape by `open_lines`."""
    return json.dumps(raw, ensure_ascii=False, default=str) + "\n"


def open_lines(path: Path) -> Any:
    """A file to write lines to."""
    return path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n")


def parents_of(role: str, files: Iterable[Path]) -> dict[str, str]:
    """Role -> identity of each file: `data`, or `data 1`, `data 2`, … for several."""
    identities = [store.identity(file) for file in files]
    if len(identities) == 1:
        return {role: identities[0]}
    return {f"{role} {i}": identity for i, identity in enumerate(identities, start=1)}


def manifest_options(options: Any, **paths: Any) -> dict[str, Any]:
    """The fields of an options object as the manifest keeps them: paths as text, hub ids pinned, no output."""
    fields = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    fields.pop("output")
    return {name: _plain(value) for name, value in (fields | paths).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_plain(entry) for entry in value]
    return str(pinned(value)) if isinstance(value, Path) else value


def check_jsonl(output: Path) -> None:
    """InputError for an output that is no JSONL file, or whose place is taken by a foreign one."""
    if output.suffix != ".jsonl":
        raise InputError(f"--output {output} is no .jsonl file", "name it, for example, mix.jsonl")


def good_items(items: Iterable[Item], bad_rows: BadRows) -> Iterator[Item]:
    """The items that are not bad. At the end DataError for bad ones, or a note where they are skipped."""
    bad: list[BadRow] = []
    total, file = 0, None
    for item in items:
        total += 1
        if item.example is not None:
            yield item
            continue
        file = file or item.file
        if item.file == file:
            bad.append(BadRow(item.line, item.problem, item.hint))
        if len(bad) >= MAX_BAD_ROWS and bad_rows == "stop":
            break
    if file is not None:
        report_bad_rows(file, bad, total, bad_rows)
