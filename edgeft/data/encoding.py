"""Conversations -> token ids and labels for training, token ids for calibration.

encoded = encode(example, chat, encoder(Path("model")))
encoded.ids, encoded.labels     # equal length; a label is IGNORED where nothing is learned
"""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft.data.encoded_rows import (
    IGNORED,
    Encoded,
    EncodedPairs,
    EncodedPrompts,
    EncodedRows,
    EncodedVerdicts,
)
from edgeft.data.rows import BadRow, BadRows, report_bad_rows
from edgeft.errors import InputError
from edgeft.progress import say, say_once
from edgeft.records import Example
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import Encode
from edgeft.tokenizer.learned_parts import Parts, sequences, spans

CALIBRATION_TOKENS = 65_536
"""tokens of a calibration, where the caller does not say how many"""
GOLDEN_RATIO = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class LeftOut:
    """Examples that `encode_all` left out."""

    longer: int
    """examples longer than the cutoff"""
    longest: int
    """tokens of the longest example, left out or not"""
    refused: tuple[BadRow, ...] = ()
    """examples that the chat template refuses, or of which it leaves nothing to learn"""

    def facts(self) -> dict[str, Any]:
        """The entry of a manifest."""
        refused = {"refused": len(self.refused)} if self.refused else {}
        return {"left_out": {"longer": self.longer, "longest": self.longest, **refused}}


def encode(
    example: Example, chat: ChatTemplate, tokenize: Encode, train_on_inputs: bool = False
) -> Encoded:
    """Ids and labels of one conversation; with `train_on_inputs` the prompt is learned, too.

    Prompts and answers are tokenized separately, as they are at inference: a merge across their
    border would be a token that the model never sees there. InputError where the template refuses
    the conversation. Of a document every token is learned, and the tokens that begin and end a text.
    """
    if example.is_document:
        begin = chat.bos_token if "bos_token" in chat.source else ""
        ids = tokenize(begin + example.answer + chat.eos_token)
        return Encoded(ids, ids)
    parts = spans(chat, example.messages, example.tools)
    return _encoded(example, parts, tokenize, train_on_inputs)


def encode_each(
    example: Example, chat: ChatTemplate, tokenize: Encode, train_on_inputs: bool = False
) -> list[Encoded]:
    """As `encode`, with earlier answers that need a prompt of their own (`sequences`) before it."""
    if example.is_document:
        return [encode(example, chat, tokenize)]
    each = sequences(chat, example.messages, example.tools)
    return [_encoded(example, parts, tokenize, train_on_inputs) for parts in each]


def _encoded(example: Example, parts: Parts, tokenize: Encode, train_on_inputs: bool) -> Encoded:
    if train_on_inputs and not all(message.learned for message in example.messages):
        raise InputError(
            "an answer has weight 0 or train false, and --train-on-inputs learns every text",
            "leave --train-on-inputs off",
        )
    ids: list[int] = []
    labels: list[int] = []
    for text, learned in parts:
        piece = tokenize(text)
        ids += piece
        labels += piece if learned or train_on_inputs else [IGNORED] * len(piece)
    return Encoded(ids, labels)


def encode_all(
    examples: Sequence[Example],
    chat: ChatTemplate,
    tokenize: Encode,
    cutoff: int,
    train_on_inputs: bool = False,
) -> tuple[EncodedRows, LeftOut]:
    """Encode the examples of at most `cutoff` tokens.

    Longer ones are left out, not cut: an answer without its end teaches the model not to stop.
    """
    if chat.writes_the_date:
        say_once(
            "the chat template writes the day on which it is rendered: the examples are learned with "
            "today's, a chat has the date of its own day"
        )
    kept = EncodedRows()
    refused: list[BadRow] = []
    longer = longest = 0
    for example in examples:
        try:
            items = encode_each(example, chat, tokenize, train_on_inputs)
        except InputError as error:
            refused.append(BadRow.of(example, error.message, error.hint))
            continue
        if all(label == IGNORED for item in items for label in item.labels):
            problem = "the chat template leaves nothing of the answers that are to be learned"
            refused.append(BadRow.of(example, problem))
            continue
        for item in items:
            longest = max(longest, len(item.ids))
            if len(item.ids) <= cutoff:
                kept.append(item)
            else:
                longer += 1
    return kept, LeftOut(longer, longest, tuple(refused))


def encode_pairs(
    examples: Sequence[Example], chat: ChatTemplate, tokenize: Encode, cutoff: int
) -> tuple[EncodedPairs, LeftOut]:
    """As `encode_all`, of preference pairs. A pair is left out where either answer is too long."""
    kept, fitting = EncodedPairs(), _Fitting(cutoff)
    for _, pair in fitting.of(examples, lambda one: encode_pair(one, chat, tokenize)):
        kept.append((pair[0], pair[1]))
    return kept, fitting.left_out


def encode_verdicts(
    examples: Sequence[Example], chat: ChatTemplate, tokenize: Encode, cutoff: int
) -> tuple[EncodedVerdicts, LeftOut]:
    """As `encode_all`, of answers that are labelled."""
    kept, fitting = EncodedVerdicts(), _Fitting(cutoff)
    for example, (row,) in fitting.of(examples, lambda one: (encode(one, chat, tokenize),)):
        kept.append(row)
        kept.desirable.append(bool(example.desirable))
    return kept, fitting.left_out


def encode_prompts(
    examples: Sequence[Example], chat: ChatTemplate, tokenize: Encode, cutoff: int
) -> tuple[EncodedPrompts, LeftOut]:
    """The prompts of at most `cutoff` tokens, each ending where the answer begins."""
    kept = EncodedPrompts()
    refused: list[BadRow] = []
    longer = longest = 0
    for example in examples:
        try:
            text = chat.render(example.prompt, tools=example.tools)
        except InputError as error:
            refused.append(BadRow.of(example, error.message, error.hint))
            continue
        ids = tokenize(text)
        longest = max(longest, len(ids))
        if len(ids) > cutoff:
            longer += 1
            continue
        kept.append(Encoded(ids, [IGNORED] * len(ids)))
        kept.texts.append(text)
        kept.answers.append(example.answer)
    return kept, LeftOut(longer, longest, tuple(refused))


class _Fitting:
    """Encodes examples, each into rows that are kept or left out together, and counts what is left out."""

    def __init__(self, cutoff: int) -> None:
        self.cutoff, self.longer, self.longest = cutoff, 0, 0
        self.refused: list[BadRow] = []

    def of(
        self, examples: Sequence[Example], encode_one: Callable[[Example], tuple[Encoded, ...]]
    ) -> Iterator[tuple[Example, tuple[Encoded, ...]]]:
        for example in examples:
            try:
                rows = encode_one(example)
            except InputError as error:
                self.refused.append(BadRow.of(example, error.message, error.hint))
                continue
            if any(set(row.labels) == {IGNORED} for row in rows):
                problem = "the chat template leaves nothing of an answer"
                self.refused.append(BadRow.of(example, problem))
                continue
            length = max(len(row.ids) for row in rows)
            self.longest = max(self.longest, length)
            if length <= self.cutoff:
                yield example, rows
            else:
                self.longer += 1

    @property
    def left_out(self) -> LeftOut:
        return LeftOut(self.longer, self.longest, tuple(self.refused))


def encode_pair(example: Example, chat: ChatTemplate, tokenize: Encode) -> tuple[Encoded, Encoded]:
    """Ids and labels of the conversation with the better answer, and of that with the worse one."""
    worse = dataclasses.replace(example, messages=example.rejected, rejected=())
    return encode(example, chat, tokenize), encode(worse, chat, tokenize)


def encode_documents(
    documents: Iterable[Example], chat: ChatTemplate, tokenize: Encode, size: int
) -> EncodedRows:
    """The tokens of all documents one after the other, in rows of `size`; the last may be shorter.

    A last row of one token is left out: nothing is learned in it.
    """
    rows, rest = EncodedRows(), array("i")
    for document in documents:
        rest.extend(encode(document, chat, tokenize).ids)
        cut = len(rest) - len(rest) % size
        for start in range(0, cut, size):
            ids = rest[start : start + size].tolist()
            rows.append(Encoded(ids, ids))
        del rest[:cut]
    if len(rest) > 1:
        rows.append(Encoded(rest.tolist(), rest.tolist()))
    return rows


def encode_file(
    examples: Sequence[Example],
    path: Path,
    chat: ChatTemplate,
    tokenize: Encode,
    cutoff: int,
    train_on_inputs: bool = False,
    bad_rows: BadRows = "stop",
) -> tuple[EncodedRows | EncodedPairs, LeftOut]:
    """`encode_all` or `encode_pairs` with notes on what is left out.

    `path`: the file that the examples come from. DataError for examples that the chat template
    refuses, unless bad rows are skipped; InputError where all are longer than the cutoff.
    """
    encoded: EncodedRows | EncodedPairs
    if examples[0].rejected:
        encoded, left_out = encode_pairs(examples, chat, tokenize, cutoff)
    elif examples[0].is_prompt:
        encoded, left_out = encode_prompts(examples, chat, tokenize, cutoff)
    elif examples[0].desirable is not None:
        encoded, left_out = encode_verdicts(examples, chat, tokenize, cutoff)
    else:
        encoded, left_out = encode_all(examples, chat, tokenize, cutoff, train_on_inputs)
    report_bad_rows(path, left_out.refused, len(examples), bad_rows)
    if left_out.longer:
        say(
            f"{left_out.longer} of {len(examples)} examples are longer than the cutoff of "
            f"{cutoff} tokens (longest {left_out.longest}) and were left out"
        )
    if not encoded:
        raise InputError(
            f"every example is longer than the cutoff of {cutoff} tokens",
            f"--cutoff-length {left_out.longest}",
        )
    return encoded, left_out


def renderable(
    examples: Sequence[Example], chat: ChatTemplate, path: Path, bad_rows: BadRows
) -> list[Example]:
    """The examples of a file that the chat template renders; DataError for others, or a note."""
    refused = list(_refused(examples, chat))
    report_bad_rows(path, refused, len(examples), bad_rows)
    places = {row.place for row in refused}
    return [example for example in examples if example.place not in places]


def _refused(examples: Sequence[Example], chat: ChatTemplate) -> Iterator[BadRow]:
    for example in examples:
        try:
            spans(chat, example.messages, example.tools)
        except InputError as error:
            yield BadRow.of(example, error.message, error.hint)


def calibration(
    examples: Sequence[Example],
    chat: ChatTemplate,
    tokenize: Encode,
    budget: int = CALIBRATION_TOKENS,
    longest: int = 4096,
) -> list[list[int]]:
    """Token ids of conversations for calibrating a quantizer, `budget` tokens or all there are.

    The conversations are spread evenly over `examples`, the choice is always the same, and each is
    encoded as in training. A conversation is cut at `longest` tokens, the last one at the budget.
    """
    sequences: list[list[int]] = []
    # The first multiples of the golden ratio, modulo 1, lie evenly, however many there are.
    for i in sorted(range(len(examples)), key=lambda i: i * GOLDEN_RATIO % 1):
        if budget <= 0:
            break
        ids = encode(examples[i], chat, tokenize).ids[: min(longest, budget)]
        sequences.append(ids)
        budget -= len(ids)
    return sequences


def text_calibration(
    ids: Sequence[int], begin: Sequence[int], budget: int = CALIBRATION_TOKENS, size: int = 512
) -> list[list[int]]:
    """Sequences of `size` tokens from a plain text, spread evenly over it, `budget` tokens in all.

    `ids`: the whole text. `begin`: ids in front of each sequence, such as bos, counted in `size`.
    """
    width = size - len(begin)
    pieces = max(1, len(ids) // width)
    count = min(pieces, max(1, budget // size))
    starts = (i * pieces // count * width for i in range(count))
    return [[*begin, *ids[start : start + width]] for start in starts]
