"""A data file -> conversations (`Example`), or a DataError that names its file and its bad rows.

examples = load_examples(Path("chats.jsonl"))
data = read_examples(Path("chats.parquet"), bad_rows="skip")
data.bad, data.ignored      # ((12, "a user turn has no text"),), {"id": 800}

`reading` knows the kinds of files, `shapes` the shapes of rows, `turns` the words for roles. Every
conversation has a user's turn and ends with the assistant's answer. Every key of a row is used, is
named in a note as not used, or makes the row a bad one.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgeft.data.columns import parse_columns, renamed, say_mapping
from edgeft.data.documents import document_rows, read_document
from edgeft.data.fields import RowError
from edgeft.data.layouts import Layout, text_suffixes
from edgeft.data.preferences import read_pair, read_prompt, read_verdict
from edgeft.data.reading import read_rows
from edgeft.data.shapes import read_row
from edgeft.data.sources import data_files
from edgeft.data.split_names import Split
from edgeft.errors import DataError, InputError
from edgeft.progress import say_once
from edgeft.records import Example

BadRows = Literal["stop", "skip"]
"""what a bad row does: it ends the command, or it is left out and counted"""
READERS = {
    "chats": (read_rows, read_row),
    "documents": (document_rows, read_document),
    "pairs": (read_rows, read_pair),
    "verdicts": (read_rows, read_verdict),
    "prompts": (read_rows, read_prompt),
}
"""layout -> (a file -> its rows, a row -> its example and the keys that were not read)"""
LISTED_ROWS = 10
"""bad rows that a message lists"""
MAX_REASON_CHARS = 300


@dataclass(frozen=True)
class BadRow:
    """A row that is no example, with the reason."""

    line: int
    problem: str
    hint: str = ""
    file: str = ""
    """name of its file, where the data has several"""

    @classmethod
    def of(cls, example: Example, problem: str, hint: str = "") -> BadRow:
        """The place of an example with what is wrong with it."""
        return cls(example.line, problem, hint, example.file)

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}" if self.file else str(self.line)


@dataclass(frozen=True)
class ExampleFile:
    """The conversations of a data file, of a folder or of a hub id, and what was left out."""

    path: Path
    """the file, or where there are several what names them"""
    examples: list[Example]
    """in the order of the files"""
    bad: tuple[BadRow, ...] = ()
    ignored: dict[str, int] = field(default_factory=dict)
    """key that is not used -> rows that have it"""

    def to_json(self) -> dict[str, Any]:
        """What was left out, for a manifest; {} where that is nothing."""
        skipped = {
            "count": len(self.bad),
            "first": [
                [row.place if row.file else row.line, row.problem] for row in self.bad[:LISTED_ROWS]
            ],
        }
        return ({"ignored": self.ignored} if self.ignored else {}) | (
            {"skipped": skipped} if self.bad else {}
        )


def load_examples(
    path: Path,
    bad_rows: BadRows = "stop",
    columns: Sequence[str] = (),
    split: Split | None = None,
    layout: Layout = "chats",
) -> list[Example]:
    """All conversations of a file, in its order; see `read_examples`."""
    return read_examples(path, bad_rows, columns, split, layout).examples


def read_examples(
    path: Path,
    bad_rows: BadRows = "stop",
    columns: Sequence[str] = (),
    split: Split | None = None,
    layout: Layout = "chats",
) -> ExampleFile:
    """The conversations of a file, or of the files of a folder or hub id that belong to `split`.

    Without `split` there must be one file. `layout`: of the rows.

    `columns`: pairs such as prompt=question (`edgeft.data.columns`).

    InputError where it is missing, has no rows or is no data file; DataError for bad rows, unless
    they are to be skipped and others are left. Notes name the keys that are not used.
    """
    mapping = parse_columns(columns)
    files = data_files(path, split, text_suffixes(layout))
    say_mapping(mapping)
    if len(files) == 1:
        return _read_file(files[0], "", bad_rows, mapping, layout)
    if split is None:
        names = ", ".join(_name(file, path) for file in files[:LISTED_ROWS])
        raise InputError(f"{path} holds {len(files)} data files: {names}", "name one of them")
    read = [_read_file(file, _name(file, path), bad_rows, mapping, layout) for file in files]
    ignored: collections.Counter[str] = collections.Counter()
    for file in read:
        ignored.update(file.ignored)
    examples = [example for file in read for example in file.examples]
    return ExampleFile(path, examples, tuple(row for f in read for row in f.bad), dict(ignored))


def _name(file: Path, source: Path) -> str:
    """The name of one of several files in messages."""
    return file.relative_to(source).as_posix() if source.is_dir() else file.name


def _read_file(
    path: Path, name: str, bad_rows: BadRows, mapping: Mapping[str, str], layout: Layout
) -> ExampleFile:
    """`name`: that examples and bad rows carry."""
    rows, read = READERS[layout]
    examples, bad = [], []
    ignored: collections.Counter[str] = collections.Counter()
    for line, raw in rows(path):
        try:
            if isinstance(raw, DataError):
                raise RowError(raw.problem, raw.hint)
            row, left_out = renamed(raw, mapping)
            example, unread = read(row, line, name)
        except RowError as error:
            bad.append(BadRow(line, error.problem[:MAX_REASON_CHARS], error.hint))
        except RecursionError:
            bad.append(BadRow(line, "the row is nested too deeply"))
        else:
            examples.append(example)
            ignored.update({*unread, *left_out})
    if not examples and not bad:
        raise InputError(f"{path} holds no examples", "one JSON object per line, or a JSON array")
    report_bad_rows(path, bad, len(examples) + len(bad), bad_rows)
    if ignored:
        keys = ", ".join(
            f"{key or '(no name)'} ({count} row{'s'[: count > 1]})"
            for key, count in ignored.most_common()
        )
        say_once(f"{path}: keys that are not used: {keys}")
    named = tuple(dataclasses.replace(row, file=name) for row in bad)
    return ExampleFile(path, examples, named, dict(ignored.most_common()))


def report_bad_rows(path: Path, bad: Sequence[BadRow], total: int, bad_rows: BadRows) -> None:
    """A note on rows that are skipped; DataError where bad rows stop, or are all there are."""
    if not bad:
        return
    lines = collections.defaultdict(list)
    for row in bad[:LISTED_ROWS]:
        lines[row.problem].append(row.place)
    first, *others = lines.items()
    listed = [first[0] + (f" (also line {', '.join(first[1][1:])})" if first[1][1:] else "")]
    listed += [f"line {', '.join(numbers)}: {problem}" for problem, numbers in others]
    counted = [f"{len(bad)} of {total} rows are bad"] if len(bad) > 1 else []
    problem, hint = "; ".join(listed), bad[0].hint
    if bad_rows == "stop" or len(bad) == total:
        if len(bad) < total:
            hint += ("; " if hint else "") + "--bad-rows skip leaves bad rows out"
        raise DataError(path / bad[0].file, bad[0].line, "; ".join([problem, *counted]), hint)
    say_once(f"{len(bad)} of {total} rows of {path} are skipped: line {bad[0].place}: {problem}")
