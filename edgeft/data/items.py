"""Data files or folders of them -> their rows one at a time, each with what training reads in it.

for item in read_items([Path("chats.jsonl"), Path("more/")]): item.example, item.problem

A row of JSONL, CSV, Parquet or Arrow is read when it is asked for, so memory does not grow with the
file; a JSON array is read at once. Preference pairs and KTO rows are recognized here: their chosen or
labelled answer is the answer of `example`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft.data.columns import renamed, say_mapping
from edgeft.data.fields import RowError
from edgeft.data.preferences import RowKind, as_conversation
from edgeft.data.reading import read_rows
from edgeft.data.shapes import read_row
from edgeft.data.sources import data_files
from edgeft.errors import DataError, InputError
from edgeft.progress import say_once
from edgeft.records import Example


@dataclass(frozen=True)
class Item:
    """One row of a data file."""

    file: Path
    line: int
    """line, or number of the row, from 1"""
    raw: Any
    """the row as the file has it, under the names of --columns"""
    example: Example | None = None
    """None for a bad row"""
    problem: str = ""
    """why the row is bad"""
    hint: str = ""
    unread: tuple[str, ...] = ()
    """keys that say something and are not used"""
    kind: RowKind = "answer"
    rejected: str | None = None
    """of a preference pair: the worse answer"""
    desirable: bool | None = None
    """of a KTO row"""

    @functools.cached_property
    def system(self) -> str:
        return "\n".join(m.content for m in self._messages if m.role == "system")

    @functools.cached_property
    def question(self) -> str:
        """The turns before the last answer, without the system turn."""
        return "\n".join(m.content for m in self._messages[:-1] if m.role != "system")

    @functools.cached_property
    def answer(self) -> str:
        """The last answer, with its calls."""
        last = self._messages[-1] if self._messages else None
        if last is None:
            return ""
        calls = [f"{call.name} {call.arguments}" for call in last.tool_calls]
        return "\n".join([*([last.content] if last.content else []), *calls])

    @functools.cached_property
    def answers(self) -> tuple[str, ...]:
        """The texts of all learned answers."""
        return tuple(m.content for m in self._messages if m.role == "assistant" and m.learned)

    @functools.cached_property
    def text(self) -> str:
        """Every text of the conversation."""
        return "\n".join([m.content for m in self._messages] + [self.rejected or ""])

    @property
    def _messages(self) -> tuple[Any, ...]:
        return self.example.messages if self.example else ()


def read_items(paths: Iterable[Path], columns: Mapping[str, str] | None = None) -> Iterator[Item]:
    """The rows of the files, in their order. InputError as `read_rows` raises it."""
    say_mapping(columns or {})
    for path in paths:
        for file in data_files(path):
            for line, raw in read_rows(file):
                yield read_item(file, line, raw, columns or {})


def read_compared(path: Path, columns: Mapping[str, str] | None = None) -> Iterator[Item]:
    """The readable rows of a file that data is compared with, named by --columns or by themselves.

    InputError where there is none: nothing would be compared. A note where some cannot be read.
    """
    rows, bad = 0, []
    for file in data_files(path):
        for line, raw in read_rows(file):
            item = read_item(file, line, raw, columns or {})
            if item.example is None and columns:
                item = read_item(file, line, raw, {})
            rows += 1
            if item.example is None:
                bad.append(f"{file}:{line}: {item.problem}")
            else:
                yield item
    if len(bad) == rows:
        problem = bad[0] if bad else f"{path} holds no rows"
        raise InputError(f"nothing to compare with: {problem}", "rows as for training")
    if bad:
        say_once(f"{len(bad)} of {rows} rows of {path} are not compared: {bad[0]}")


def read_item(file: Path, line: int, raw: Any, columns: Mapping[str, str]) -> Item:
    """One row, bad or not."""
    try:
        if isinstance(raw, DataError):
            raise RowError(raw.problem, raw.hint)
        raw, left_out = renamed(raw, columns)
        kind, plain, rejected, desirable = as_conversation(raw)
        example, unread = read_row(plain, line)
    except RowError as error:
        row = {} if isinstance(raw, DataError) else raw
        return Item(file, line, row, None, error.problem[:300], error.hint)
    except RecursionError:
        return Item(file, line, {}, None, "the row is nested too deeply")
    return Item(
        file, line, raw, example, "", "", (*unread, *left_out), kind, rejected, desirable
    )  # fmt: skip
