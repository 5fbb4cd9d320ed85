"""Data files -> conversations -> token ids, and the splits.

Four row shapes are read, from JSON (an array) or JSONL (one object per line):

    {"instruction": …, "input": …, "output": …, "system": …}      alpaca
    {"messages": [{"role": …, "content": …}, …]}                   chat messages
    {"conversations": [{"from": "human", "value": …}, …]}          sharegpt
    {"prompt": …, "answer": …}                                     questions

Each may have `tags`, and `choices` of which the answer is one.

Every example ends with the assistant's answer. Broken rows are a DataError with file and line.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft.errors import DataError, InputError
from edgeft.records import Example, Message
from edgeft.template import ChatTemplate, Encode, spans

IGNORED = -100
"""label of a token that is not learned"""
GOLDEN = (5**0.5 - 1) / 2

_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "model": "assistant", "system": "system",
}  # fmt: skip


@dataclass(frozen=True)
class Encoded:
    """One example as ids; `labels` are the ids to learn, IGNORED elsewhere, not shifted."""

    ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Cut:
    """What `encode_all` had to leave out, for the message to the user."""

    longer: int
    """examples longer than the cutoff"""
    longest: int
    """tokens of the longest example"""


def load_examples(path: Path) -> list[Example]:
    """All conversations of a file. InputError when it is missing or holds none."""
    if not path.is_file():
        raise InputError(f"no such data file: {path}", "check the path")
    examples = [_example(path, line, row) for line, row in _rows(path)]
    if not examples:
        raise InputError(f"{path} holds no examples", "one JSON object per line, or a JSON array")
    return examples


def split(
    examples: Sequence[Example], validation_size: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """(train, validation): `validation_size` is a share below 1, a count from 1; 0 = none.

    The same seed and file always give the same split.
    """
    count = round(len(examples) * validation_size) if validation_size < 1 else int(validation_size)
    if count >= len(examples):
        raise InputError(
            f"a validation split of {count} leaves nothing of {len(examples)} examples to train on",
            "lower --validation-size",
        )
    if validation_size > 0 and count == 0:
        raise InputError(
            f"a validation share of {validation_size} of {len(examples)} examples is empty",
            "raise --validation-size, or set it to 0",
        )
    order = list(range(len(examples)))
    random.Random(seed).shuffle(order)
    held = set(order[:count])
    train = [example for i, example in enumerate(examples) if i not in held]
    return train, [examples[i] for i in sorted(held)]


def encode(
    example: Example, chat: ChatTemplate, tokens: Encode, train_on_inputs: bool = False
) -> Encoded:
    """Ids and labels of one conversation.

    The pieces between the turns' borders are tokenized apart, because that is what happens when
    the model answers: a merge across the border would be a token that it never sees.
    """
    ids: list[int] = []
    labels: list[int] = []
    for text, learned in spans(chat, example.messages):
        piece = tokens(text)
        ids += piece
        labels += piece if learned or train_on_inputs else [IGNORED] * len(piece)
    return Encoded(ids, labels)


def encode_all(
    examples: Sequence[Example],
    chat: ChatTemplate,
    tokens: Encode,
    cutoff: int,
    train_on_inputs: bool = False,
) -> tuple[list[Encoded], Cut]:
    """Encode; examples longer than `cutoff` tokens are left out, because a cut answer teaches the
    model not to stop."""
    encoded = [encode(example, chat, tokens, train_on_inputs) for example in examples]
    kept = [item for item in encoded if len(item.ids) <= cutoff]
    longest = max((len(item.ids) for item in encoded), default=0)
    return kept, Cut(longer=len(encoded) - len(kept), longest=longest)


def calibration(
    examples: Sequence[Example],
    chat: ChatTemplate,
    tokens: Encode,
    budget: int = 65_536,
    longest: int = 4096,
) -> list[list[int]]:
    """Whole conversations as ids for calibrating a quantizer, `budget` tokens or all there are.

    They are spread evenly over `examples`, always the same, and each as training saw it. What goes
    beyond `longest` tokens of a conversation, or beyond the budget, is cut off.
    """
    sample: list[list[int]] = []
    # The multiples of the golden ratio, modulo 1, lie evenly however many of them are taken.
    for i in sorted(range(len(examples)), key=lambda i: i * GOLDEN % 1):
        if budget <= 0:
            break
        ids = encode(examples[i], chat, tokens).ids[: min(longest, budget)]
        sample.append(ids)
        budget -= len(ids)
    return sample


def text_calibration(
    ids: Sequence[int], begin: Sequence[int], budget: int = 65_536, size: int = 512
) -> list[list[int]]:
    """Pieces of a plain text, `size` tokens each with `begin` in front, spread evenly over it."""
    own = size - len(begin)
    pieces = max(1, len(ids) // own)
    wanted = min(pieces, max(1, budget // size))
    starts = (piece * pieces // wanted * own for piece in range(wanted))
    return [[*begin, *ids[start : start + own]] for start in starts]


def fingerprint(examples: Sequence[Example]) -> str:
    """sha256 over the conversations in order; two arms are compared only on equal ones."""
    digest = hashlib.sha256()
    for example in examples:
        turns = [[message.role, message.content] for message in example.messages]
        turns += [list(example.choices)] if example.choices else []
        digest.update(json.dumps(turns).encode() + b"\n")
    return digest.hexdigest()


def read_text(path: Path) -> str:
    """InputError for a file that is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error}", "save it as UTF-8") from None


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
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
    if not isinstance(row, dict):
        raise DataError(path, line, f"not an object but {type(row).__name__}")
    if "messages" in row or "conversations" in row:
        messages = _turns(path, line, row.get("messages") or row.get("conversations"))
    elif "instruction" in row:
        messages = _alpaca(path, line, row)
    elif "prompt" in row and "answer" in row:
        turns = [{"role": "user", "content": row["prompt"]},
                 {"role": "assistant", "content": row["answer"]}]  # fmt: skip
        messages = _turns(path, line, turns)
    else:
        raise DataError(
            path,
            line,
            f"unknown row with keys {', '.join(sorted(map(str, row))) or '(none)'}",
            "alpaca (instruction, output), messages, conversations, or prompt and answer",
        )
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


def _alpaca(path: Path, line: int, row: dict[str, Any]) -> tuple[Message, ...]:
    fields = {key: row.get(key) or "" for key in ("instruction", "input", "output", "system")}
    for key, value in fields.items():
        if not isinstance(value, str):
            raise DataError(path, line, f"{key} is {type(value).__name__}, not text")
    user = fields["instruction"] + ("\n" + fields["input"] if fields["input"] else "")
    messages = [Message("user", user), Message("assistant", fields["output"])]
    history = row.get("history") or []
    try:
        past = [
            Message(role, str(text))
            for pair in history
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
    except (TypeError, ValueError):
        raise DataError(path, line, "history is not a list of [question, answer] pairs") from None
    system = [Message("system", fields["system"])] if fields["system"] else []
    return (*system, *past, *messages)


def _turns(path: Path, line: int, turns: Any) -> tuple[Message, ...]:
    if not isinstance(turns, list) or not turns:
        raise DataError(path, line, "the conversation is empty or not a list")
    messages = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise DataError(path, line, "a turn is not an object")
        role = turn.get("role", turn.get("from"))
        content = turn.get("content", turn.get("value"))
        if not isinstance(role, str) or role not in _ROLES:
            raise DataError(
                path, line, f"unknown role {role!r}", f"known: {', '.join(sorted(_ROLES))}"
            )
        if not isinstance(content, str):
            raise DataError(path, line, f"a {role} turn has no text")
        messages.append(Message(_ROLES[role], content))
    return tuple(messages)
