"""A row with a plain text, or a text file -> a document to learn as it is (`Example` of one message).

document, ignored = read_document({"text": "Once upon a time …", "id": 3}, line=1)
ignored                                     # ["id"]
is_text_file(Path("book.txt"))              # True: the whole file is one document
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeft.data.fields import Fields, RowError, text
from edgeft.data.reading import Rows, holds_rows, read_rows, read_text
from edgeft.data.shapes import check_text, is_row
from edgeft.records import DOCUMENT, Example, Message

TEXT_KEYS = ("text", "content")
"""keys that hold the text of a row"""
TEXT_SUFFIXES = (".txt",)
"""of files of a folder that are documents"""


def read_document(raw: Any, line: int, file: str = "") -> tuple[Example, list[str]]:
    """(the document, the keys that say something and were not read). RowError for a row without a text."""
    if not isinstance(raw, dict):
        raise RowError(f"not an object but {type(raw).__name__}")
    fields = Fields(raw)
    if is_row(raw):
        raise RowError("the row is a conversation and no plain text", "--objective sft learns it")
    content = text(fields.first(*TEXT_KEYS), "text")
    if not content.strip():
        raise RowError("the row has no text", 'rows of {"text": …}, or --columns text=NAME')
    example = Example((Message(DOCUMENT, content),), (), line, file=file)
    check_text(example)
    return example, fields.unread


def document_rows(path: Path) -> Rows:
    """The rows of a file; a file of plain text is one row."""
    if is_text_file(path):
        yield 1, {"text": read_text(path)}
    else:
        yield from read_rows(path)


def is_text_file(path: Path) -> bool:
    """Whether a file is plain text: neither its name nor its first character says that it holds rows."""
    if holds_rows(path):
        return False
    with path.open("rb") as file:
        head = file.read(512)
    return not head.startswith((b"PAR1", b"ARROW1")) and not head.lstrip(
        b"\xef\xbb\xbf \r\n\t"
    ).startswith(b"{")
