"""Rows of every shape are read; a broken row is named by file and line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from edgeft.data.rows import load_examples
from edgeft.errors import DataError, InputError
from edgeft.records import Message
from helpers.chats import talk

pytestmark = pytest.mark.unit

ALPACA_ROW: dict[str, Any] = {"instruction": "Q", "output": "A"}
TALK = (Message("user", "Q"), Message("assistant", "A"))


def jsonl(path: Path, *rows: Any) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


SHAPES: dict[str, tuple[dict[str, Any], tuple[Message, ...]]] = {
    "alpaca": (ALPACA_ROW, TALK),
    "alpaca with empty fields": ({**ALPACA_ROW, "input": "", "system": None, "history": []}, TALK),
    "alpaca input": ({**ALPACA_ROW, "input": "I"}, talk(("user", "Q\nI"), ("assistant", "A"))),
    "alpaca system and history": (
        {**ALPACA_ROW, "system": "S", "history": [["q1", "a1"], ["q2", "a2"]]},
        talk(
            ("system", "S"), ("user", "q1"), ("assistant", "a1"), ("user", "q2"),
            ("assistant", "a2"), ("user", "Q"), ("assistant", "A"),
        ),
    ),
    "messages": (
        {"messages": [
            {"role": "system", "content": "S"}, {"role": "user", "content": "Q"},
            {"role": "assistant", "content": "A"},
        ]},
        talk(("system", "S"), ("user", "Q"), ("assistant", "A")),
    ),
    "sharegpt": (
        {"conversations": [
            {"from": "system", "value": "S"}, {"from": "human", "value": "Q"},
            {"from": "gpt", "value": "A"}, {"from": "user", "value": "Ü"},
            {"from": "model", "value": " A \u2028 "},
        ]},
        talk(
            ("system", "S"), ("user", "Q"), ("assistant", "A"), ("user", "Ü"),
            ("assistant", " A \u2028 "),
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_read_from_every_kind_of_file(tmp_path: Path, shape: str) -> None:
    row, messages = SHAPES[shape]
    line = json.dumps(row, ensure_ascii=False)
    texts = {
        "jsonl": f"{line}\n\n  \n{line}",
        "windows": f"{line}\r\n\r\n\r\n{line}\r\n",
        "array": f" \n[{line}, {line}]",
        "indented": json.dumps([row, row], indent=2),
    }
    for name, text in texts.items():
        for encoding in ("utf-8", "utf-8-sig"):
            file = tmp_path / name
            file.write_bytes(text.encode(encoding))
            examples = load_examples(file)
            assert [example.messages for example in examples] == [messages] * 2, name
            numbers = [1, 4] if name in ("jsonl", "windows") else [1, 2]
            assert [example.line for example in examples] == numbers, name
    assert examples[0].answer == messages[-1].content and examples[0].prompt == messages[:-1]


def test_tags_are_kept(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "x.jsonl", {**ALPACA_ROW, "tags": ["light", 3]}, ALPACA_ROW)
    assert [example.tags for example in load_examples(file)] == [("light", "3"), ()]


def turns(*pairs: tuple[Any, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


BROKEN: list[tuple[Any, str]] = [
    ('{"instruction": ', "not JSON"),
    ('{"a":' * 100_000, "not JSON"),
    ("[1]", "not JSON|not an object but list"),
    ("3", "not an object but int"),
    ('"text"', "not an object but str"),
    ("null", "not an object but NoneType"),
    ({}, r"unknown row with keys \(none\)"),
    ({"frage": "Q", "antwort": "A"}, r"unknown row with keys antwort, frage.*alpaca \(instr"),
    ({"instruction": "Q"}, "the last turn is not an assistant's answer"),
    ({"instruction": "Q", "output": " \n"}, "the last turn is not an assistant's answer"),
    ({"instruction": 3, "output": "A"}, "instruction is int, not text"),
    ({"instruction": "Q", "output": ["A"]}, "output is list, not text"),
    ({**ALPACA_ROW, "system": {"a": 1}}, "system is dict, not text"),
    ({**ALPACA_ROW, "history": "abc"}, r"history is not a list of \[question, answer\] pairs"),
    ({**ALPACA_ROW, "history": [["q"]]}, "history is not a list"),
    ({**ALPACA_ROW, "history": [["q", "a", "x"]]}, "history is not a list"),
    ({**ALPACA_ROW, "history": 7}, "history is not a list"),
    ({**ALPACA_ROW, "tags": 5}, "tags is not a list"),
    ({**ALPACA_ROW, "tags": "light"}, "tags is not a list"),
    ({"messages": []}, "the conversation is empty or not a list"),
    ({"messages": "hi"}, "the conversation is empty or not a list"),
    ({"conversations": None}, "the conversation is empty or not a list"),
    ({"messages": ["hi", 3]}, "a turn is not an object"),
    (turns(("narrator", "x")), "unknown role 'narrator'.*known: ai, assistant,.* gpt, human"),
    (turns(("tool", "x")), "a tool turn follows no turn of the assistant"),
    (turns((None, "x")), "unknown role None"),
    (turns((["user"], "x")), r"unknown role \['user'\]"),
    (turns(("user", None)), "a user turn has no text"),
    (turns(("user", [{"type": "text"}])), "a part of a content has no text"),
    (turns(("user", "Q")), "the last turn is not an assistant's answer"),
    (turns(("user", "Q"), ("assistant", "")), "the last turn is not an assistant's answer"),
    (turns(("assistant", "A")), "there is no user turn"),
    (turns(("system", "S"), ("assistant", "A")), "there is no user turn"),
]


@pytest.mark.parametrize(("row", "says"), BROKEN)
def test_a_broken_row_is_named_by_file_and_line(tmp_path: Path, row: Any, says: str) -> None:
    file = jsonl(tmp_path / "data.jsonl", ALPACA_ROW, "", row, ALPACA_ROW)
    with pytest.raises(DataError, match=says) as caught:
        load_examples(file)
    assert str(caught.value).startswith(f"{file}:3: ")
    if isinstance(row, dict):
        array = tmp_path / "data.json"
        array.write_text(json.dumps([ALPACA_ROW, row]))
        with pytest.raises(DataError, match=says) as caught:
            load_examples(array)
        assert str(caught.value).startswith(f"{array}:2: ")


def test_a_file_without_examples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such data file: .*none.jsonl"):
        load_examples(tmp_path / "none.jsonl")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe is a pipe or a device .write the rows to a file"):
        load_examples(tmp_path / "pipe")
    for text in ("", "\n \n", "[]"):
        (tmp_path / "empty").write_text(text)
        with pytest.raises(InputError, match="empty holds no examples"):
            load_examples(tmp_path / "empty")
    (tmp_path / "latin").write_bytes('{"instruction": "Grüße"}'.encode("latin-1"))
    with pytest.raises(InputError, match="latin is not UTF-8.*save it as UTF-8"):
        load_examples(tmp_path / "latin")
    (tmp_path / "array").write_text('[{"instruction": "Q",\n"output" "A"}]')
    with pytest.raises(DataError, match="array:2: not JSON"):
        load_examples(tmp_path / "array")
