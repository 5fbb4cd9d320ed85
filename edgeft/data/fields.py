"""One object of a data file -> its entries by name, its values as text, and the entries nobody read."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from typing import Any


class RowError(ValueError):
    """Why a row is no example. The reader adds the file and the line."""

    def __init__(self, problem: str, hint: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint


def is_empty(value: Any) -> bool:
    """Whether an entry says nothing: null, "", [] or {}. 0 and false say something."""
    return value is None or (isinstance(value, (str, list, dict, tuple)) and not value)


class Fields:
    """The entries of an object by lower-case key. It remembers which of them were read."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.raw = raw
        self._keys: dict[str, str] = {}
        for key in sorted(raw, key=lambda key: key != key.strip().lower()):
            self._keys.setdefault(key.strip().lower(), key)
        self._read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._keys

    def first(self, *names: str) -> Any:
        """The first of the named entries that says something, else None. It counts as read."""
        for name in names:
            key = self._keys.get(name)
            if key is not None and not is_empty(self.raw[key]):
                self._read.add(key)
                return self.raw[key]
        return None

    def holding(self, names: Collection[str]) -> list[str]:
        """Those of the names whose entries say something. They do not count as read."""
        return [n for n in names if n in self._keys and not is_empty(self.raw[self._keys[n]])]

    @property
    def unread(self) -> list[str]:
        """Keys of the entries that say something and were not read."""
        return [k for k, value in self.raw.items() if k not in self._read and not is_empty(value)]


def text(value: Any, name: str) -> str:
    """A text as it is, and "" for null. RowError for anything else."""
    if value is None or isinstance(value, str):
        return value or ""
    raise RowError(f"{name} is {type(value).__name__}, not text")


def answer_text(value: Any, name: str) -> str:
    """As `text`; a number or a boolean becomes what JSON writes for it."""
    if isinstance(value, float) and not math.isfinite(value):
        raise RowError(f"{name} is {value}, which is no answer", "an empty cell of a table?")
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    return text(value, name)


def parsed(value: Any, name: str) -> Any:
    """A list or an object that the file holds as text -> itself; any other value as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RowError(
                f"{name} is not JSON: {error}", "Python's str() is no JSON; use json.dumps()"
            ) from None
    return value


def json_text(value: Any) -> str:
    """A value as one line of JSON, in UTF-8 and not in escapes."""
    return json.dumps(value, ensure_ascii=False, default=str)
