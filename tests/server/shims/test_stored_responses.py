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
    stored.add("a", HI)
    stored.add("b", HI)
    assert stored.get("a") == HI
    stored.add("c", HI)
    assert [stored.get(name) for name in "abc"] == [HI, None, HI]


def test_long_conversations_leave_room_for_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_responses, "MAX_STORED_BYTES", 200)
    stored = StoredResponses()
    for name in "abc":
        stored.add(name, [{"role": "user", "content": "x" * 50}])
    assert [stored.get(name) is None for name in "abc"] == [True, False, False]
    stored.add("long", [{"role": "user", "content": "x" * 500}])
    assert all(stored.get(name) is None for name in ("b", "c", "long"))
    stored.add("d", HI)
    assert stored.get("d") == HI


def test_what_is_kept_does_not_change() -> None:
    stored, messages = StoredResponses(), [dict(HI[0])]
    stored.add("a", messages)
    messages[0]["content"] = "other"
    got = stored.get("a")
    assert got == HI
    got.append(HI[0])
    assert stored.get("a") == HI
