"""Conversations are kept within a bound."""

from __future__ import annotations

import pytest

from edgeft.server.shims import stored_responses
from edgeft.server.shims.stored_responses import StoredResponses

pytestmark = pytest.mark.unit

HI = [{"role": "user", "content": "hi"}]


def test_what_was_unused_for_longest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_responses, "MAX_RESPONSES", 2)
    stored = StoredResponses()
    stored.add({"id": "a"}, HI)
    stored.add({"id": "b"}, HI)
    assert stored.messages("a") == HI
    stored.add({"id": "c"}, HI)
    assert [stored.messages(name) for name in "abc"] == [HI, None, HI]


def test_long_conversations_leave_room_for_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_responses, "MAX_STORED_BYTES", 200)
    stored = StoredResponses()
    for name in "abc":
        stored.add({"id": name}, [{"role": "user", "content": "x" * 50}])
    assert [stored.messages(name) is None for name in "abc"] == [True, False, False]
    stored.add({"id": "long"}, [{"role": "user", "content": "x" * 500}])
    assert all(stored.messages(name) is None for name in ("b", "c", "long"))
    stored.add({"id": "d"}, HI)
    assert stored.messages("d") == HI


def test_what_is_kept_does_not_change() -> None:
    stored, messages = StoredResponses(), [dict(HI[0])]
    stored.add({"id": "a"}, messages)
    messages[0]["content"] = "other"
    got = stored.messages("a")
    assert got == HI
    got.append(HI[0])
    assert stored.messages("a") == HI


def test_a_response_is_read_and_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    stored, response = StoredResponses(), {"id": "a", "output": []}
    stored.add(response, HI)
    assert stored.response("a") == response and stored.response("b") is None
    assert stored.delete("a") and not stored.delete("a")
    assert stored.response("a") is None and stored.messages("a") is None
    assert stored._bytes == 0
