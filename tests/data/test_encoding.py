"""Token ids and labels by a real tokenizer, and the sequences that a quantizer is calibrated on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgeft.data.encoded_rows import IGNORED, Encoded
from edgeft.data.encoding import calibration, encode, encode_all, text_calibration
from edgeft.records import Example
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import Encode, encoder
from helpers.chats import some_examples, talk

pytestmark = pytest.mark.unit

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TALK = talk(("user", "Q"), ("assistant", "A"))


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


def test_the_tokenizer_would_merge_across_the_border(chat: ChatTemplate, tokens: Encode) -> None:
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
    kept, left_out = encode_all(examples, chat, tokens, cutoff=lengths[1])
    assert [len(item.ids) for item in kept] == lengths[:2]
    assert (left_out.longer, left_out.longest) == (2, lengths[3])
    kept, left_out = encode_all(examples, chat, tokens, cutoff=1000, train_on_inputs=True)
    assert len(kept) == 4 and left_out.longer == 0 and kept[0].labels == kept[0].ids
    assert encode_all([], chat, tokens, cutoff=1)[1].longest == 0


def code_points(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def numbered(sample: list[list[int]]) -> list[int]:
    """Which of `some_examples(...)` the conversations are, by the number in the question."""
    texts = ["".join(map(chr, ids)) for ids in sample]
    return [int("".join(filter(str.isdigit, text.partition("assistant")[0]))) for text in texts]


def test_calibration_encodes_as_training_does(chat: ChatTemplate, tokens: Encode) -> None:
    examples = some_examples(5)
    sample = calibration(examples, chat, tokens)
    assert sorted(sample) == sorted(encode(example, chat, tokens).ids for example in examples)
    assert calibration([], chat, tokens) == []


@pytest.mark.parametrize("share", [0.03, 0.1, 0.31, 0.5, 0.9])
def test_calibration_is_spread_evenly_over_the_examples(chat: ChatTemplate, share: float) -> None:
    examples = some_examples(1000)
    every = sum(len(encode(example, chat, code_points).ids) for example in examples)
    sample = calibration(examples, chat, code_points, budget=round(share * every))
    assert sum(map(len, sample)) == round(share * every)
    assert sample == calibration(examples, chat, code_points, budget=round(share * every))
    indices = sorted(numbered(sample[:-1]))
    gaps = [b - a for a, b in zip([-1, *indices], [*indices, 1000], strict=True)]
    assert len(set(indices)) == len(indices) and max(gaps) <= 2.7 / share + 1
    assert len(set(gaps)) > 1  # a fixed stride would be in step with rows that alternate


def test_calibration_cuts_at_the_longest_and_at_the_budget(chat: ChatTemplate) -> None:
    examples = some_examples(40)
    whole = [encode(example, chat, code_points).ids for example in examples]
    cut = calibration(examples, chat, code_points, longest=30)
    assert sorted(cut) == sorted(ids[:30] for ids in whole)
    assert calibration(examples, chat, code_points, budget=7) == [whole[0][:7]]
    assert calibration(examples, chat, code_points, budget=0) == []


def test_calibration_on_plain_text_takes_pieces_spread_over_it() -> None:
    ids = list(range(1000))
    pieces = text_calibration(ids, [7], budget=300, size=100)
    assert [piece[:2] for piece in pieces] == [[7, 0], [7, 330 // 99 * 99], [7, 6 * 99]]
    assert all(len(piece) == 100 for piece in pieces)
    whole = text_calibration(ids, [], budget=10_000, size=100)
    assert [token for piece in whole for token in piece] == ids
    assert text_calibration(ids[:5], [7], size=100) == [[7, 0, 1, 2, 3, 4]], "shorter than a piece"
    assert len(text_calibration(ids, [7], budget=1, size=100)) == 1
