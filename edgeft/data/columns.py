"""`--columns prompt=question,answer=reply` -> rows under the keys that `shapes` knows.

columns = parse_columns(("prompt=question", "answer=reply"))
row, left_out = renamed({"question": "7 times 8?", "reply": "56", "output": "?"}, columns)
row             # {"prompt": "7 times 8?", "answer": "56"}
left_out        # ["output"]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeft.data.fields import RowError
from edgeft.data.shapes import CONVERSATIONS, PAIRS
from edgeft.errors import InputError, did_you_mean
from edgeft.progress import say_once

TARGETS = ("prompt", "answer", "system", "history", "messages", "tools", "choices", "tags", "chosen",
           "rejected", "label", "text")  # fmt: skip
"""what a column can be read as"""
SHAPE_KEYS = {key for pair in PAIRS for key in (pair.question, *pair.details, *pair.answers)} | {
    *CONVERSATIONS
}
"""keys by which `shapes` recognizes a row; a mapping takes their place"""


def parse_columns(pairs: Sequence[str]) -> dict[str, str]:
    """Target -> column. InputError for a pair that is none, an unknown target or one given twice."""
    columns: dict[str, str] = {}
    for pair in pairs:
        target, equals, column = pair.partition("=")
        if not (equals and column):
            raise InputError(
                f"--columns {pair!r} is no pair", "--columns prompt=question,answer=reply"
            )
        if target not in TARGETS:
            raise InputError(f"--columns cannot fill {target!r}", did_you_mean(target, TARGETS))
        if target in columns:
            raise InputError(f"--columns names {target} twice")
        columns[target] = column
    return columns


def say_mapping(columns: Mapping[str, str]) -> None:
    """A note on what is read from which column, once."""
    if columns:
        named = ", ".join(f"{target} = {column!r}" for target, column in columns.items())
        say_once(f"columns: {named}")


def renamed(raw: Any, columns: Mapping[str, str]) -> tuple[Any, list[str]]:
    """(the row with the targets as keys, its other keys that would be read as question or answer).

    RowError for a row without a column that is mapped.
    """
    if not columns or not isinstance(raw, dict):
        return raw, []
    for column in columns.values():
        if column not in raw:
            raise RowError(f"the row has no column {column!r}", did_you_mean(column, map(str, raw)))
    others = {key: value for key, value in raw.items() if key not in columns.values()}
    left_out = [key for key in others if key.strip().lower() in SHAPE_KEYS or key in columns]
    kept = {key: value for key, value in others.items() if key not in left_out}
    return {target: raw[column] for target, column in columns.items()} | kept, left_out
