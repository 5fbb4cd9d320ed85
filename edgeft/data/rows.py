"""A data file -> conversations (`Example`), or a DataError that names the file and the line.

Four row shapes are read, from JSON (an array) or JSONL (one object per line):

    {"instruction": …, "input": …, "output": …, "system": …}      alpaca
    {"messages": [{"role": …, "content": …}, …]}                   chat messages
    {"conversations": [{"from": "human", "value": …}, …]}          sharegpt
    {"prompt": …, "answer": …}                                     questions

Any row may also have `tags`, a list, and `choices`, a list with the answer in it. Alpaca rows may
have `history`, a list of earlier [question, answer] pairs. Every conversation has a user's turn and
ends with the assistant's answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeft.errors import DataError, InputError
from edgeft.records import Example, Message

ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "model": "assistant", "system": "system",
}  # fmt: skip
"""role in a file -> role of a `Message`"""


def load_examples(path: Path) -> list[Example]:
    """All conversations of a file, in its order. InputError where it is missing or has none."""
    if not path.is_file():
        raise InputError(f"no such data file: {path}", "check the path")
    examples = [_example(path, line, row) for line, row in _rows(path)]
    if not examples:
        raise InputError(f"{path} holds no examples", "one JSON object per line, or a JSON array")
    return examples


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without its byte order mark. InputError for another encoding."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error}", "save it as UTF-8") from None


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(number, JSON value) of each row: the line in JSONL, the place in an array, from 1."""
    text = read_text(path)
    if text.lstrip().startswith("["):
        try:
            yield from enumerate(json.loads(text), start=1)
        except (ValueError, RecursionError) as error:
            line = getattr(error, "lineno", 1)
            raise DataError(path, line, f"not JSON: {error}") from None
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    path, number, f"not JSON: {error}", "one JSON object per line"
                ) from None


def _example(path: Path, line: int, row: Any) -> Example:
    """A row with its checks: who speaks last, that a user speaks, `tags`, `choices`."""
    if not isinstance(row, dict):
        raise DataError(path, line, f"not an object but {type(row).__name__}")
    messages = _messages(path, line, row)
    if messages[-1].role != "assistant" or not messages[-1].content.strip():
        raise DataError(path, line, "the last turn is not an assistant's answer")
    if not any(message.role == "user" for message in messages):
        raise DataError(path, line, "there is no user turn")
    lists = {key: row.get(key) or [] for key in ("tags", "choices")}
    for key, value in lists.items():
        if not isinstance(value, list):
            raise DataError(path, line, f"{key} is not a list")
    tags, choices = (tuple(map(str, value)) for value in lists.values())
    if choices and messages[-1].content not in choices:
        raise DataError(path, line, "the answer is none of the choices")
    return Example(messages, tags, line, choices)


def _messages(path: Path, line: int, row: dict[str, Any]) -> tuple[Message, ...]:
    """The conversation of a row of any of the four shapes."""
    if "messages" in row or "conversations" in row:
        return _turns(path, line, row.get("messages") or row.get("conversations"))
    if "instruction" in row:
        return _alpaca(path, line, row)
    if "prompt" in row and "answer" in row:
        question = {"role": "user", "content": row["prompt"]}
        answer = {"role": "assistant", "content": row["answer"]}
        return _turns(path, line, [question, answer])
    raise DataError(
        path,
        line,
        f"unknown row with keys {', '.join(sorted(map(str, row))) or '(none)'}",
        "alpaca (instruction, output), messages, conversations, or prompt and answer",
    )


def _alpaca(path: Path, line: int, row: dict[str, Any]) -> tuple[Message, ...]:
    """The messages of an alpaca row: system, history, instruction and input, output."""
    fields = {key: row.get(key) or "" for key in ("instruction", "input", "output", "system")}
    for key, value in fields.items():
        if not isinstance(value, str):
            raise DataError(path, line, f"{key} is {type(value).__name__}, not text")
    user = fields["instruction"] + ("\n" + fields["input"] if fields["input"] else "")
    last_turns = [Message("user", user), Message("assistant", fields["output"])]
    try:
        history = [
            Message(role, str(text))
            for pair in row.get("history") or []
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
    except (TypeError, ValueError):
        raise DataError(path, line, "history is not a list of [question, answer] pairs") from None
    system = [Message("system", fields["system"])] if fields["system"] else []
    return (*system, *history, *last_turns)


def _turns(path: Path, line: int, turns: Any) -> tuple[Message, ...]:
    """The messages of a list of {role, content} or {from, value} objects."""
    if not isinstance(turns, list) or not turns:
        raise DataError(path, line, "the conversation is empty or not a list")
    messages = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise DataError(path, line, "a turn is not an object")
        role = turn.get("role", turn.get("from"))
        content = turn.get("content", turn.get("value"))
        if not isinstance(role, str) or role not in ROLES:
            raise DataError(
                path, line, f"unknown role {role!r}", f"known: {', '.join(sorted(ROLES))}"
            )
        if not isinstance(content, str):
            raise DataError(path, line, f"a {role} turn has no text")
        messages.append(Message(ROLES[role], content))
    return tuple(messages)
