"""A kind of fault, and how a row is looked at: patterns and excerpts."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from edgeft.data.items import Item

Severity = Literal["error", "warning", "note"]
Look = Callable[[Item], str]


@dataclass(frozen=True)
class RowKind:
    """A kind of fault that a single row shows."""

    name: str
    severity: Severity
    about: str
    """what it looks at, and what such a row teaches"""
    look: Look
    error_share: float | None = None
    """share of the rows from which on the finding is an error; None = it stays what it is"""


EXCERPT_CHARS = 80


def excerpt(text: str) -> str:
    """The beginning of a text on one line."""
    line = " ".join(text[: EXCERPT_CHARS * 2].split())
    return line if len(line) <= EXCERPT_CHARS else line[:EXCERPT_CHARS] + "…"


def around(text: str, match: re.Match[str]) -> str:
    """A match with a little of what stands around it. Invisible characters are written as escapes."""
    start = max(0, match.start() - 20)
    piece = " ".join(text[start : match.end() + 30].split(" "))[: EXCERPT_CHARS + 20]
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in piece)


def first_match(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    return around(text, match) if match else ""


def in_text(pattern: re.Pattern[str]) -> Look:
    return lambda item: first_match(pattern, item.text)


def in_answer(pattern: re.Pattern[str]) -> Look:
    return lambda item: first_match(pattern, item.answer)


def in_unprintable(pattern: re.Pattern[str]) -> Look:
    return lambda item: "" if item.text.isprintable() else first_match(pattern, item.text)
