"""Conversations as records, for tests of data."""

from __future__ import annotations

from edgeft.records import Example, Message


def talk(*turns: tuple[str, str]) -> tuple[Message, ...]:
    """(role, text) pairs -> messages."""
    return tuple(Message(role, content) for role, content in turns)


def some_examples(count: int) -> list[Example]:
    """q0 -> a0, q1 -> a1, …; the line is the number."""
    return [Example(talk(("user", f"q{i}"), ("assistant", f"a{i}")), line=i) for i in range(count)]
