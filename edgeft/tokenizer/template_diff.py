"""Two chat templates -> the lines in which they differ, for a user to read."""

from __future__ import annotations

import difflib
import re

from edgeft.printable import one_printable_line

MAX_LINES = 40
MAX_LINE_CHARS = 160


def template_diff(one: str, other: str) -> list[str]:
    """Lines of `diff -u0` without its head, at most MAX_LINES; [] for equal templates.

    A template is often one long line, so it is also cut behind each tag.
    """
    lines = [
        one_printable_line(line, MAX_LINE_CHARS)
        for line in difflib.unified_diff(_pieces(one), _pieces(other), lineterm="", n=0)
        if not line.startswith(("---", "+++", "@@"))
    ]
    if len(lines) > MAX_LINES:
        lines[MAX_LINES - 1 :] = [f"… and {len(lines) - MAX_LINES + 1} more lines"]
    return lines


def _pieces(source: str) -> list[str]:
    pieces = re.split(r"(?<=[%}]\})|\n", source)
    return [piece for piece in pieces if piece and piece.strip()]
