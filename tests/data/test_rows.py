"""Rows of every shape, broken rows, splits, and the labels by a real tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgeft.data.encoding import IGNORED, Encoded, calibration, encode, encode_all, text_calibration
from edgeft.data.rows import load_examples
from edgeft.data.splits import fingerprint, split
from edgeft.errors import DataError, InputError
from edgeft.records import Example, Message
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import Encode, encoder

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
ALPACA_ROW: dict[str, Any] = {"instruction": "Q", "output": "A"}
TALK = (Message("user", "Q"), Message("assistant", "A"))


def jsonl(path: Path, *rows: Any) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def talk(*turns: tuple[str, str]) -> tuple[Message, ...]:
    return tuple(Message(role, content) for role, content in turns)


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
def test_every_shape_in_every_file(tmp_path: Path, shape: str) -> None:
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
    ({"question": "Q", "answer": "A"}, r"unknown row with keys answer, question.*alpaca \(instr"),
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
    ({"messages": ["hi"]}, "a turn is not an object"),
    (turns(("tool", "x")), "unknown role 'tool'.*known: assistant, gpt, human"),
    (turns((None, "x")), "unknown role None"),
    (turns((["user"], "x")), r"unknown role \['user'\]"),
    (turns(("user", None)), "a user turn has no text"),
    (turns(("user", [{"type": "text"}])), "a user turn has no text"),
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


def test_files_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such data file: .*none.jsonl"):
        load_examples(tmp_path / "none.jsonl")
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


def some(count: int) -> list[Example]:
    return [Example(talk(("user", f"q{i}"), ("assistant", f"a{i}")), line=i) for i in range(count)]


@pytest.mark.parametrize(("size", "held"), [(0.1, 10), (0.005, 0), (1, 1), (7, 7), (0.994, 99)])
def test_split_is_a_partition(size: float, held: int) -> None:
    examples = some(100)
    if not held:
        with pytest.raises(InputError, match=r"share of 0\.005 of 100 examples is empty"):
            split(examples, size, seed=1)
        return
    train, validation = split(examples, size, seed=1)
    assert len(validation) == held and len(train) == 100 - held
    lines = sorted(example.line for example in train + validation)
    assert lines == list(range(100)), "each example once"
    for part in (train, validation):
        assert [e.line for e in part] == sorted(e.line for e in part), "in the file's order"
    assert split(examples, size, seed=1) == (train, validation)


def test_the_seed_decides_the_split() -> None:
    found = {tuple(e.line for e in split(some(50), 5, seed)[1]) for seed in range(8)}
    assert len(found) == 8
    # Written down, because a run that goes on after an upgrade must keep its held-out examples.
    assert [e.line for e in split(some(20), 4, seed=0)[1]] == [10, 14, 16, 18]


def test_no_split_and_too_large_a_split() -> None:
    assert split(some(3), 0, seed=1) == (some(3), [])
    for size in (3, 4, 0.9):
        with pytest.raises(InputError, match=r"split of \d leaves nothing of 3 examples") as caught:
            split(some(3), size, seed=1)
        assert caught.value.hint == "lower --validation-size"


def test_fingerprint_is_about_the_conversations_and_their_order() -> None:
    one, two = some(2)
    assert fingerprint([one, two]) == fingerprint([Example(one.messages, ("t",), 9), two])
    prints = [fingerprint(e) for e in ([one, two], [two, one], [one], [], [one, one])]
    assert len(set(prints)) == 5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a byte-level BPE that merges across what a template writes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("model")
    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = ["assistant\nYes, the light", "user\nturn on the light", "on.\nuser\n"] * 40
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"chat_template": CHATML, "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def chat(model: Path) -> ChatTemplate:
    return ChatTemplate.from_folder(model)


@pytest.fixture(scope="module")
def tokens(model: Path) -> Encode:
    return encoder(model)


def decode(model: Path, ids: list[int]) -> str:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    return str(tokenizer.decode(ids, skip_special_tokens=False))


def learned(model: Path, encoded: Encoded) -> list[str]:
    """The texts of the runs of tokens that are learned."""
    runs: list[list[int]] = []
    before = IGNORED
    for label in encoded.labels:
        if label != IGNORED:
            runs = runs if before != IGNORED else [*runs, []]
            runs[-1].append(label)
        before = label
    return [decode(model, run) for run in runs]


@pytest.mark.parametrize("answer", ["Yes, the light is on.", " Größe: 5 µm 😀\n\n", "x", "user\n"])
def test_only_the_answer_and_its_stop_are_learned(
    model: Path, chat: ChatTemplate, tokens: Encode, answer: str
) -> None:
    messages = talk(("system", "Be brief."), ("user", "turn on the light"), ("assistant", answer))
    encoded = encode(Example(messages), chat, tokens)
    assert learned(model, encoded) == [answer + "<|im_end|>"]
    assert encoded.labels[-1] == tokens("<|im_end|>")[0] == encoded.ids[-1]
    pairs = zip(encoded.ids, encoded.labels, strict=True)
    assert all(label in (IGNORED, id) for id, label in pairs)
    assert decode(model, encoded.ids) + "\n" == chat.render(messages, generation_prompt=False)
    # The ids in front are those that inference sends: a merge may not reach over the border.
    prompt = tokens(chat.render(messages[:-1]))
    assert encoded.ids[: len(prompt)] == prompt
    assert set(encoded.labels[: len(prompt)]) == {IGNORED}


def test_the_tokenizer_would_merge_over_the_border(chat: ChatTemplate, tokens: Encode) -> None:
    """Without this the test above could not fail for tokenizing the whole text at once."""
    messages = talk(("user", "turn on the light"), ("assistant", "Yes, the light is on."))
    encoded = encode(Example(messages), chat, tokens)
    assert tokens(chat.render(messages, generation_prompt=False))[: len(encoded.ids)] != encoded.ids


def test_every_answer_of_a_conversation_is_learned(
    model: Path, chat: ChatTemplate, tokens: Encode
) -> None:
    messages = talk(
        ("user", "turn on the light"), ("assistant", "on."), ("user", "and?"), ("assistant", "ok")
    )
    encoded = encode(Example(messages), chat, tokens)
    assert learned(model, encoded) == ["on.<|im_end|>", "ok<|im_end|>"]
    assert decode(model, encoded.ids) + "\n" == chat.render(messages, generation_prompt=False)


def test_train_on_inputs_learns_everything(chat: ChatTemplate, tokens: Encode) -> None:
    plain = encode(Example(TALK), chat, tokens)
    encoded = encode(Example(TALK), chat, tokens, train_on_inputs=True)
    assert encoded.labels == encoded.ids == plain.ids != plain.labels


def test_longer_examples_are_left_out_and_counted(chat: ChatTemplate, tokens: Encode) -> None:
    answers = ["x", "x" * 40, "x" * 41, "x" * 90]
    examples = [Example(talk(("user", "q"), ("assistant", answer))) for answer in answers]
    lengths = [len(encode(example, chat, tokens).ids) for example in examples]
    assert lengths == sorted(set(lengths))
    kept, cut = encode_all(examples, chat, tokens, cutoff=lengths[1])
    assert [len(item.ids) for item in kept] == lengths[:2]
    assert (cut.longer, cut.longest) == (2, lengths[3])
    kept, cut = encode_all(examples, chat, tokens, cutoff=1000, train_on_inputs=True)
    assert len(kept) == 4 and cut.longer == 0 and kept[0].labels == kept[0].ids
    assert encode_all([], chat, tokens, cutoff=1)[1].longest == 0


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def numbered(sample: list[list[int]]) -> list[int]:
    """Which of `some(...)` the conversations are, by the number in the question."""
    texts = ["".join(map(chr, ids)) for ids in sample]
    return [int("".join(filter(str.isdigit, text.partition("assistant")[0]))) for text in texts]


def test_calibration_is_what_training_saw(chat: ChatTemplate, tokens: Encode) -> None:
    examples = some(5)
    sample = calibration(examples, chat, tokens)
    assert sorted(sample) == sorted(encode(example, chat, tokens).ids for example in examples)
    assert calibration([], chat, tokens) == []


@pytest.mark.parametrize("share", [0.03, 0.1, 0.31, 0.5, 0.9])
def test_calibration_is_spread_evenly_over_the_examples(chat: ChatTemplate, share: float) -> None:
    examples = some(1000)
    every = sum(len(encode(example, chat, letters).ids) for example in examples)
    sample = calibration(examples, chat, letters, budget=round(share * every))
    assert sum(map(len, sample)) == round(share * every)
    assert sample == calibration(examples, chat, letters, budget=round(share * every))
    found = sorted(numbered(sample[:-1]))
    gaps = [b - a for a, b in zip([-1, *found], [*found, 1000], strict=True)]
    assert len(set(found)) == len(found) and max(gaps) <= 2.7 / share + 1
    assert len(set(gaps)) > 1  # a fixed stride would be in step with rows that alternate


def test_calibration_cuts_what_is_long_and_what_is_over(chat: ChatTemplate) -> None:
    examples = some(40)
    whole = [encode(example, chat, letters).ids for example in examples]
    cut = calibration(examples, chat, letters, longest=30)
    assert sorted(cut) == sorted(ids[:30] for ids in whole)
    assert calibration(examples, chat, letters, budget=7) == [whole[0][:7]]
    assert calibration(examples, chat, letters, budget=0) == []


def test_plain_text_is_calibrated_on_in_pieces_spread_over_it() -> None:
    ids = list(range(1000))
    pieces = text_calibration(ids, [7], budget=300, size=100)
    assert [piece[:2] for piece in pieces] == [[7, 0], [7, 330 // 99 * 99], [7, 6 * 99]]
    assert all(len(piece) == 100 for piece in pieces)
    whole = text_calibration(ids, [], budget=10_000, size=100)
    assert [token for piece in whole for token in piece] == ids
    assert text_calibration(ids[:5], [7], size=100) == [[7, 0, 1, 2, 3, 4]], "shorter than a piece"
    assert len(text_calibration(ids, [7], budget=1, size=100)) == 1
