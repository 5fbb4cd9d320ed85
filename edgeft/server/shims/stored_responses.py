"""Takes conversations by the id of their last answer, gives them back while there is room: `previous_response_id`."""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any

MAX_RESPONSES = 1000
MAX_STORED_BYTES = 32_000_000
"""of all conversations together; those that were unused for longest are forgotten"""


class StoredResponses:
    """In memory alone: a restart forgets them. Used in one thread."""

    def __init__(self) -> None:
        self._stored: OrderedDict[str, str] = OrderedDict()
        """id -> the messages as JSON, the one used last at the end"""
        self._bytes = 0

    def add(self, response_id: str, messages: list[dict[str, Any]]) -> None:
        text = json.dumps(messages)
        self._stored[response_id] = text
        self._bytes += len(text)
        while len(self._stored) > MAX_RESPONSES or self._bytes > MAX_STORED_BYTES:
            _, oldest = self._stored.popitem(last=False)
            self._bytes -= len(oldest)

    def get(self, response_id: str) -> list[dict[str, Any]] | None:
        """None for an id that is unknown or forgotten."""
        if response_id not in self._stored:
            return None
        self._stored.move_to_end(response_id)
        messages: list[dict[str, Any]] = json.loads(self._stored[response_id])
        return messages
