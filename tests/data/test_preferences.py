"""A preference pair in the layouts of many programs is one conversation with two answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgeft.data.encoded_rows import IGNORED
from edgeft.data.encoding import encode_pair, encode_pairs, encode_prompts, encode_verdicts
from edgeft.data.fields import RowError
from edgeft.data.items import read_item
from edgeft.data.preferences import read_pair, read_prompt, read_verdict
from edgeft.data.rows import load_examples
from edgeft.data.splits import fingerprint, split
from edgeft.errors import DataError
from edgeft.records import Message
from edgeft.tokenizer.chat_template import ChatTemplate
from helpers.tiny import CHATML

pytestmark = pytest.mark.unit
CHAT = ChatTemplate(CHATML, "", "<|im_end|>", ("<|im_end|>",))
USER = {"role": "user", "content": "7 x 8?"}
BETTER, WORSE = ({"role": "assistant", "content": text} for text in ("56", "54"))
HH = "\n\nHuman: 7 x 8?\n\nAssistant: "
PLAIN = (("user", "7 x 8?"),)
LAYOUTS: list[tuple[dict[str, Any], tuple[tuple[str, str], ...]]] = [
    ({"prompt": "7 x 8?", "chosen": "56", "rejected": "54"}, PLAIN),
    ({"question": "7 x 8?", "system": "Short.", "chosen": "56", "rejected": "54"},
     (("system", "Short."), *PLAIN)),
    ({"instruction": "Multiply.", "input": "7 x 8?", "chosen": "56", "rejected": "54"},
     (("user", "Multiply.\n7 x 8?"),)),
    ({"prompt": [USER], "chosen": [BETTER], "rejected": [WORSE]}, PLAIN),
    ({"chosen": [USER, BETTER], "rejected": [USER, WORSE]}, PLAIN),
    ({"prompt": "7 x 8?", "chosen": [USER, BETTER], "rejected": [USER, WORSE]}, PLAIN),
    ({"messages": [USER], "chosen": BETTER, "rejected": WORSE}, PLAIN),
    ({"messages": [USER, BETTER], "rejected_response": "54"}, PLAIN),
    ({"messages": [USER, BETTER], "rejected_messages": [USER, WORSE]}, PLAIN),
    ({"conversations": [{"from": "human", "value": "7 x 8?"}],
      "chosen": {"from": "gpt", "value": "56"}, "rejected": {"from": "gpt", "value": "54"}}, PLAIN),
    ({"input": {"messages": [USER]}, "preferred_output": [BETTER], "non_preferred_output": [WORSE]},
     PLAIN),
    ({"chosen": f"{HH}56", "rejected": f"{HH}54"}, PLAIN),
    ({"chosen": f"\n\nHuman: hi\n\nAssistant: hello{HH}56",
      "rejected": f"\n\nHuman: hi\n\nAssistant: hello{HH}54"},
     (("user", "hi"), ("assistant", "hello"), *PLAIN)),
]  # fmt: skip


@pytest.mark.parametrize(("row", "prompt"), LAYOUTS)
def test_every_layout_is_the_same_pair(
    row: dict[str, Any], prompt: tuple[tuple[str, str], ...]
) -> None:
    example, unread = read_pair(row, 3)
    learned = [message.learned for message in example.messages if message.role == "assistant"]
    assert [(m.role, m.content) for m in example.messages[:-1]] == [*prompt]
    assert example.messages[:-1] == example.rejected[:-1]
    assert [example.answer, example.rejected[-1].content, example.line] == ["56", "54", 3]
    assert learned == [*[False] * (len(learned) - 1), True], "nothing of the prompt is learned"
    assert not unread
    item = read_item(Path("x"), 1, row, {})  # as `edgeft data check` sees it
    assert (item.kind, item.answer, item.rejected) == ("preference", "56", "54")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "a", "completion": "b"}, "has no chosen answer"),
        ({"prompt": "a", "chosen": "b"}, "has no rejected answer"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "the chosen answer is the rejected one"),
        ({"chosen": "one text", "rejected": "another"}, "unknown row with keys output"),
        ({"chosen": [USER, BETTER], "rejected": [{**USER, "content": "?"}, WORSE]},
         "differ before the answer"),
        ({"chosen": [USER, BETTER, USER, BETTER], "rejected": [USER, BETTER]},
         "differ before the answer"),
        ({"chosen": [USER], "rejected": [USER]}, "the last turn is not an assistant's answer"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "images": ["x"]}, "images"),
        ("no object", "not an object but str"),
    ],
)  # fmt: skip
def test_a_row_that_is_no_pair_is_refused(row: Any, problem: str) -> None:
    with pytest.raises(RowError, match=problem):
        read_pair(row, 1)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_file_of_chats_is_no_file_of_pairs_and_the_other_way_round(tmp_path: Path) -> None:
    chats = write(tmp_path / "chats.jsonl", [{"prompt": "a", "completion": "b"}])
    pairs = write(tmp_path / "pairs.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    with pytest.raises(DataError, match=r"chats.jsonl:1: .*no chosen answer"):
        load_examples(chats, layout="pairs")
    with pytest.raises(DataError, match=r"pairs.jsonl:1: .*preference pair.*--objective dpo"):
        load_examples(pairs)
    mapped = write(tmp_path / "columns.jsonl", [{"q": "a", "j": "b", "k": "c"}])
    columns = ["prompt=q", "chosen=j", "rejected=k"]
    (example,) = load_examples(mapped, columns=columns, layout="pairs")
    assert (example.answer, example.rejected[-1].content) == ("b", "c")


def code_points(text: str) -> list[int]:
    return [ord(character) for character in text]


def test_only_the_answers_of_a_pair_are_learned_after_the_same_prompt() -> None:
    example, _ = read_pair(LAYOUTS[-1][0], 1)
    better, worse = encode_pair(example, CHAT, code_points)
    for row, answer in ((better, "56"), (worse, "54")):
        assert len(row.ids) == len(row.labels)
        learned = [id for id, label in zip(row.ids, row.labels, strict=True) if label != IGNORED]
        assert "".join(map(chr, learned)) == f"{answer}<|im_end|>"
    start = better.labels.index(ord("5"))
    assert better.ids[:start] == worse.ids[:start] and set(better.labels[:start]) == {IGNORED}


def test_a_pair_with_one_long_answer_is_left_out() -> None:
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c" * count} for count in (3, 90, 4)]
    examples = [read_pair(row, line)[0] for line, row in enumerate(rows, start=1)]
    pairs, left_out = encode_pairs(examples, CHAT, code_points, cutoff=80)
    assert len(pairs) == 2 and left_out.longer == 1
    assert left_out.longest == len(encode_pair(examples[1], CHAT, code_points)[1].ids)
    assert [len(worse.ids) - len(better.ids) for better, worse in pairs[0:2]] == [2, 3]


def test_the_worse_answer_counts_for_the_fingerprint_of_a_split() -> None:
    first, _ = read_pair({"prompt": "a", "chosen": "b", "rejected": "c"}, 1)
    other, _ = read_pair({"prompt": "a", "chosen": "b", "rejected": "d"}, 1)
    assert fingerprint([first]) != fingerprint([other])
    assert first.messages == (Message("user", "a"), Message("assistant", "b"))


def test_no_pair_is_in_both_splits() -> None:
    rows = [{"prompt": f"{i}", "chosen": "b", "rejected": "c"} for i in range(20)]
    examples = [read_pair(row, line)[0] for line, row in enumerate(rows)]
    train, held_out = split(examples, 0.25, seed=1)
    assert len(held_out) == 5 and not {e.line for e in train} & {e.line for e in held_out}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "7 x 8?", "completion": "54", "label": False},
        {"messages": [USER, WORSE], "kto_tag": False},
        {"instruction": "7 x 8?", "output": "54", "label": False},
    ],
)
def test_a_labelled_answer_is_learned_with_its_label(row: dict[str, Any]) -> None:
    example, unread = read_verdict(row, 2)
    assert (example.desirable, example.answer, unread) == (False, "54", [])
    good, _ = read_verdict(row | {next(key for key in row if key in ("label", "kto_tag")): True}, 2)
    assert good.desirable is True and good.messages == example.messages
    assert fingerprint([good]) != fingerprint([example])
    encoded, left_out = encode_verdicts([example, good], CHAT, code_points, 80)
    assert encoded.desirable == [False, True] and not left_out.longer
    with pytest.raises(RowError, match="the row has no label of its answer"):
        read_verdict({"prompt": "a", "completion": "b"}, 1)


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"prompt": "7 x 8?"}, ""),
        ({"prompt": [USER]}, ""),
        ({"messages": [USER]}, ""),
        ({"conversations": [{"from": "human", "value": "7 x 8?"}]}, ""),
        ({"instruction": "7 x 8?"}, ""),
        ({"prompt": "7 x 8?", "answer": "56"}, "56"),
        ({"messages": [USER, BETTER]}, "56"),
        ({"prompt": "7 x 8?", "chosen": "56", "rejected": "54"}, "56"),
    ],
)
def test_a_prompt_has_its_reference_or_none(row: dict[str, Any], answer: str) -> None:
    example, _ = read_prompt(row, 1)
    assert example.is_prompt and example.answer == answer
    assert [(m.role, m.content) for m in example.prompt] == [("user", "7 x 8?")]
    prompts, _ = encode_prompts([example], CHAT, code_points, 80)
    assert prompts.answers == [answer] and prompts.texts[0].endswith("<|im_start|>assistant\n")
    assert set(prompts[0].labels) == {IGNORED}


def test_a_row_without_a_question_is_no_prompt() -> None:
    for row, problem in (
        ({"text": "a"}, "plain text"),
        ({"messages": []}, "empty"),
        ({}, "unknown"),
    ):
        with pytest.raises(RowError, match=problem):
            read_prompt(row, 1)
