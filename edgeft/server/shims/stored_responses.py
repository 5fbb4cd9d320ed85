"""Takes answers with their conversations, gives them back by id while there is room: `previous_response_id`, GET."""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any

MAX_RESPONSES = 1000
MAX_STORED_BYTES = 32_000_000
"""of all of them together; those that were unused for longest are forgotten"""


class StoredResponses:
    """In memory alone: a restart forgets them. Used in one thread."""

    def __init__(self) -> None:
        self._stored: OrderedDict[str, tuple[str, str]] = OrderedDict()
        """id -> (messages, response) as JSON, the one used last at the end"""
        self._bytes = 0

    def add(self, response: dict[str, Any], messages: list[dict[str, Any]]) -> None:
        """`messages`: the conversation with the answer, without instructions."""
        texts = json.dumps(messages), json.dumps(response)
        self._stored[response["id"]] = texts
        self._bytes += sum(map(len, texts))
        while len(self._stored) > MAX_RESPONSES or self._bytes > MAX_STORED_BYTES:
            self.delete(next(iter(self._stored)))

    def messages(self, response_id: str) -> list[dict[str, Any]] | None:
        """None for an id that is unknown or forgotten."""
        texts = self._used(response_id)
        return json.loads(texts[0]) if texts else None

    def response(self, response_id: str) -> dict[str, Any] | None:
        """None for an id that is unknown or forgotten."""
        texts = self._used(response_id)
        return json.loads(texts[1]) if texts else None

    def delete(self, response_id: str) -> bool:
        """Whether it was there."""
        texts = self._stored.pop(response_id, ())
        self._bytes -= sum(map(len, texts))
        return bool(texts)

    def _used(self, response_id: str) -> tuple[str, str] | None:
        if response_id in self._stored:
            self._stored.move_to_end(response_id)
        return self._stored.get(response_id)
