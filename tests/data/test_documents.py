"""Plain texts as data: rows and files of them, their token ids, and what is no plain text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeft.data.encoding import encode, encode_documents
from edgeft.data.rows import load_examples, read_examples
from edgeft.errors import DataError, InputError
from edgeft.records import DOCUMENT, Example, Message
from edgeft.tokenizer.chat_template import ChatTemplate

pytestmark = pytest.mark.unit
CHAT = ChatTemplate("{{ messages[0].content }}", "<", ">", (">",))


def documents(*texts: str) -> list[Example]:
    return [Example((Message(DOCUMENT, text),)) for text in texts]


def code_points(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def test_rows_and_text_files_of_a_folder_are_documents(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\ufeffOnce\nupon a time", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"text": "one", "id": 3}\n{"content": "two"}\n')
    (tmp_path / "test.txt").write_text("held out")
    (tmp_path / "README.md").write_text("about")
    data = read_examples(tmp_path, split="train", layout="documents")
    assert [e.answer for e in data.examples] == ["Once\nupon a time", "one", "two"]
    assert all(example.is_document for example in data.examples) and data.ignored == {"id": 1}
    raw = tmp_path / "wiki.raw"
    raw.write_text("[1] plain text", encoding="utf-16")
    assert load_examples(raw, layout="documents")[0].answer == "[1] plain text"
    raw.write_text('{"body": "three"}\n')
    mapped = load_examples(raw, columns=["text=body"], layout="documents")
    assert mapped[0].answer == "three"


def test_what_is_no_plain_text_is_refused_with_the_objective_that_learns_it(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    for row, problem, hint in (
        ({"prompt": "q", "answer": "a"}, "a conversation and no plain text", "--objective sft"),
        ({"messages": []}, "a conversation and no plain text", "--objective sft"),
        ({"text": " "}, "the row has no text", "--columns text=NAME"),
        ({"text": 3}, "text is int, not text", ""),
    ):
        file.write_text(json.dumps(row) + "\n")
        with pytest.raises(DataError, match=problem) as caught:
            load_examples(file, layout="documents")
        assert hint in caught.value.hint
    file.write_text('{"text": "plain"}\n')
    with pytest.raises(DataError, match="has a plain text") as caught:
        load_examples(file)
    assert "--objective pretrain" in caught.value.hint
    (tmp_path / "x.txt").write_text("Once upon a time")
    with pytest.raises(InputError) as no_rows:
        load_examples(tmp_path / "x.txt")
    assert "--objective pretrain" in no_rows.value.hint


def test_every_token_is_learned_between_those_that_begin_and_end_a_text() -> None:
    (text,) = documents("ab")
    assert encode(text, CHAT, code_points).ids == code_points("ab>")
    begins = ChatTemplate("{{ bos_token }}", "<", ">", (">",))
    encoded = encode(text, begins, code_points)
    assert encoded.labels == encoded.ids == code_points("<ab>")


def test_rows_hold_all_tokens_one_after_the_other() -> None:
    texts = ("abcdefg", "h", "ij", "klmnopqrstuvwxy")
    for size in (2, 3, 4, 8, 29, 40):
        rows = list(encode_documents(documents(*texts), CHAT, code_points, size))
        learned = code_points("".join(f"{text}>" for text in texts))
        if len(learned) % size == 1:
            learned.pop()  # a row of one token, in which nothing is learned
        assert [id for row in rows for id in row.ids] == learned
        assert all(len(row.ids) == size for row in rows[:-1]) and all(
            r.labels == r.ids for r in rows
        )
    assert not encode_documents(documents(""), CHAT, code_points, 8)
