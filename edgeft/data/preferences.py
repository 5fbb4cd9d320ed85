"""A row with a preference pair or a verdict (KTO) -> the same row with a single answer, and pairs to learn.

kind, plain, rejected, desirable = as_conversation({"prompt": "7 x 8?", "chosen": "56", "rejected": "54"})
kind, plain         # "preference", {"prompt": "7 x 8?", "output": "56"}
example, ignored = read_pair(row, line=1)
example.answer      # "56": of `messages`; `rejected` is the same conversation with the worse answer
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from typing import Any, Literal

from edgeft.data.fields import Fields, RowError, is_empty
from edgeft.data.shapes import CONVERSATIONS, REJECTED, VERDICTS, read_row
from edgeft.data.turns import CONTENT_KEYS, ROLE_KEYS, ROLES
from edgeft.records import Example, Message

RowKind = Literal["answer", "preference", "kto"]
CHOSEN = ("chosen", "chosen_response", "chosen_messages", "preferred_output")
"""keys of the better answer in a preference pair"""
UNANSWERED = "-"
"""stands for the answer of a row that has none, while the row is read"""
TRANSCRIPT = re.compile(r"(?:^|\n\n)(Human|Assistant):")
"""begin of a turn in a text of Anthropic's hh-rlhf"""
PAIR_HINT = "prompt, chosen and rejected; or chosen and rejected as whole conversations"


def as_conversation(raw: Any) -> tuple[RowKind, Any, str | None, bool | None]:
    """(kind, the row as one with a single answer, the rejected answer, whether it is desirable)."""
    if not isinstance(raw, dict):
        return "answer", raw, None, None
    fields = Fields(raw)
    if fields.holding(REJECTED) and (fields.holding(CHOSEN) or fields.holding(CONVERSATIONS)):
        chosen, rejected = fields.first(*CHOSEN), fields.first(*REJECTED)
        return "preference", _with_answer(raw, chosen), _text_of(rejected), None
    for key in fields.holding(VERDICTS):
        label = fields.first(key)
        if isinstance(label, bool):
            rest = {k: v for k, v in raw.items() if k.strip().lower() not in VERDICTS}
            return "kto", rest, None, label
    return "answer", raw, None, None


def read_pair(raw: Any, line: int, file: str = "") -> tuple[Example, list[str]]:
    """(the conversation with the better answer and `rejected`, the keys that say something and were not
    read). RowError for a row that is no preference pair.

    What both conversations begin with is the prompt, of which nothing is learned.
    """
    if not isinstance(raw, dict):
        raise RowError(f"not an object but {type(raw).__name__}")
    fields = Fields(raw)
    chosen, rejected = fields.first(*CHOSEN), fields.first(*REJECTED)
    if chosen is None and not fields.holding(CONVERSATIONS):
        raise RowError("the row is no preference pair: it has no chosen answer", PAIR_HINT)
    if rejected is None:
        raise RowError("the row is no preference pair: it has no rejected answer", PAIR_HINT)
    better, unread = read_row(_with_answer(raw, chosen), line, file)
    worse, _ = read_row(_with_answer(raw, rejected, replaces=chosen is None), line, file)
    both = zip(better.messages, worse.messages, strict=False)
    shared = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], both)))
    messages, others = better.messages, worse.messages
    if len({len(messages), len(others), shared}) == 1:
        raise RowError("the chosen answer is the rejected one", "leave the row out")
    for conversation in (messages, others):
        if shared == len(conversation) or conversation[shared].role != "assistant":
            raise RowError("chosen and rejected differ before the answer", PAIR_HINT)
    if not any(message.role == "user" for message in messages[:shared]):
        raise RowError("chosen and rejected have no user turn in common", PAIR_HINT)
    prompt = _not_learned(messages[:shared])
    return (
        dataclasses.replace(
            better, messages=prompt + messages[shared:], rejected=prompt + others[shared:]
        ),
        unread,
    )


def read_verdict(raw: Any, line: int, file: str = "") -> tuple[Example, list[str]]:
    """(the conversation with `desirable`, the keys that say something and were not read). RowError for a row
    without a label. Nothing is learned of what is before the last answer.
    """
    kind, plain, _, desirable = as_conversation(raw)
    if kind != "kto":
        raise RowError("the row has no label of its answer", "label: true or false")
    example, unread = read_row(plain, line, file)
    messages = (*_not_learned(example.messages[:-1]), example.messages[-1])
    return dataclasses.replace(example, messages=messages, desirable=desirable), unread


def read_prompt(raw: Any, line: int, file: str = "") -> tuple[Example, list[str]]:
    """(the conversation with a last answer of which nothing is learned, the keys that were not read).

    The answer is the row's, as a reference for a reward, or "" where the row ends with the user's turn.
    """
    kind, plain, _, _ = as_conversation(raw)
    try:
        example, unread = read_row(plain, line, file)
    except RowError as error:
        if kind != "answer" or not isinstance(raw, dict):
            raise
        try:
            example, unread = read_row(_with_answer(raw, UNANSWERED), line, file)
        except RowError:
            raise error from None
        last = dataclasses.replace(example.messages[-1], content="")
        example = dataclasses.replace(example, messages=(*example.messages[:-1], last))
    return dataclasses.replace(example, messages=_not_learned(example.messages)), unread


def _not_learned(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    return tuple(
        dataclasses.replace(message, learned=False) if message.role == "assistant" else message
        for message in messages
    )


def _with_answer(raw: dict[str, Any], answer: Any, replaces: bool = False) -> dict[str, Any]:
    """A preference pair as a row with one of its answers.

    Without an answer, or where it `replaces` another one, the conversation ends with the better answer.
    """
    rest = {k: v for k, v in raw.items() if k.strip().lower() not in (*CHOSEN, *REJECTED)}
    if answer is None:
        return rest
    turns: list[Any] = list(answer) if isinstance(answer, list) else [answer]
    if isinstance(answer, str) and (dialogue := _dialogue(answer)):
        turns = dialogue
    if any(_role(turn) == "user" for turn in turns):
        rest.pop("prompt", None)
        return rest | {"messages": turns}
    if isinstance(rest.get("input"), dict):  # OpenAI's preference format
        rest |= rest.pop("input")
    for key in rest:
        if key.strip().lower() in CONVERSATIONS and isinstance(rest[key], list):
            added = [
                t if isinstance(t, dict) else {"role": "assistant", "content": t} for t in turns
            ]
            return rest | {key: [*(rest[key][:-1] if replaces else rest[key]), *added]}
    return rest | {"output": turns if isinstance(turns[0], dict) else turns[0]}


def _dialogue(text: str) -> list[dict[str, str]]:
    """The turns of a text of Anthropic's hh-rlhf, "\\n\\nHuman: …\\n\\nAssistant: …"; [] for another text."""
    first, *parts = TRANSCRIPT.split(text)
    turns = [
        {"role": ROLES[role.lower()], "content": content.strip()}
        for role, content in zip(parts[::2], parts[1::2], strict=True)
    ]
    is_dialogue = not first.strip() and [turn["role"] for turn in turns[:1]] == ["user"]
    return turns if is_dialogue and turns[-1]["role"] == "assistant" else []


def _role(turn: Any) -> str:
    words = [turn[key] for key in ROLE_KEYS if key in turn] if isinstance(turn, dict) else []
    return ROLES.get(str(words[0]).strip().lower(), "") if words else ""


def _text_of(value: Any) -> str:
    """The text of a rejected answer: a text, a turn, or turns that end with it."""
    if isinstance(value, str):
        value = _dialogue(value) or value
    if isinstance(value, list):
        value = value[-1] if value else ""
    if isinstance(value, dict):
        texts = [value[key] for key in CONTENT_KEYS if not is_empty(value.get(key))]
        value = texts[0] if texts else ""
    return value if isinstance(value, str) else str(value)
