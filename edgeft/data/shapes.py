"""A row of a data file, in the shape of many programs -> a conversation (`Example`).

example, ignored = read_row({"instruction": "7 times 8?", "output": "56", "id": 3}, line=1)
ignored     # ["id"]
"""

from __future__ import annotations

import collections
from dataclasses import dataclass
from typing import Any

from edgeft.data import turns
from edgeft.data.fields import Fields, RowError, answer_text, parsed, text
from edgeft.records import Example, Message

CONVERSATIONS = ("messages", "conversations", "conversation", "contents", "turns", "dialog", "data")
"""keys that hold a list of turns; `contents` is Gemini's, `data` UltraChat's"""
SYSTEMS = ("system", "system_prompt", "systeminstruction", "system_instruction")
ANSWERS = ("answer", "completion", "response", "output", "answers", "generation", "target",
           "targets", "solution")  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """A shape with one key for the question and one for the answer."""

    question: str
    details: tuple[str, ...] = ()
    """the first of these follows the question, on a line of its own"""
    answers: tuple[str, ...] = ANSWERS


PAIRS = (
    Pair("instruction", ("input", "context"), ("output", *ANSWERS)),
    Pair("prompt"),
    Pair("query"),
    Pair("question", ("context",)),
    Pair("problem"),
    Pair("input"),
    Pair("input_text", (), ("output_text",)),
    Pair("message_1", (), ("message_2",)),
)
"""the first whose question is in a row counts"""
REFUSED = {
    "input_ids": "edgeft reads text, not tokens",
    "segments": "edgeft writes the template itself: give prompt and completion, or messages",
} | dict.fromkeys(
    ("images", "image", "videos", "video", "audios", "audio"), "edgeft reads text only"
)
"""key of a row that would change what is learned -> the remedy"""
REJECTED = ("rejected", "rejected_response", "rejected_messages", "non_preferred_output")
"""keys of the worse answer in a preference pair"""
VERDICTS = ("label", "kto_tag")
"""keys of a boolean that calls the answer good or bad (KTO)"""


def read_row(raw: Any, line: int, file: str = "") -> tuple[Example, list[str]]:
    """(the conversation, the keys that say something and were not read). RowError for a bad row."""
    if not isinstance(raw, dict):
        raise RowError(f"not an object but {type(raw).__name__}")
    fields, ignored = Fields(raw), collections.Counter[str]()
    for key in fields.holding(REFUSED):
        raise RowError(f"the row has {key}", REFUSED[key])
    functions = turns.tools(fields.first("tools", "functions"))
    messages = _with_system(fields, _messages(fields, bool(functions), ignored))
    _check_verdict(fields)
    _check_conversation(fields, messages)
    lists = {key: parsed(fields.first(key), key) or [] for key in ("tags", "choices")}
    for key, value in lists.items():
        if not isinstance(value, list):
            raise RowError(f"{key} is not a list")
    tags, choices = (tuple(map(str, value)) for value in lists.values())
    if choices and messages[-1].content not in choices:
        raise RowError("the answer is none of the choices")
    example = Example(tuple(messages), tags, line, choices, functions, file)
    check_text(example)
    return example, [*fields.unread, *ignored]


def _messages(fields: Fields, has_tools: bool, ignored: collections.Counter[str]) -> list[Message]:
    """The turns of a row, without those of the column `system`."""
    for key in fields.holding(CONVERSATIONS):
        if key in CONVERSATIONS[:2] or _is_conversation(fields, key):
            return turns.messages(parsed(fields.first(key), key), ignored)
    # A table that joins rows of several shapes has the keys of all in each row, some of them empty.
    pairs = [p for p in PAIRS if p.question in fields and any(a in fields for a in p.answers)]
    asked = [p for p in pairs
             if fields.holding((p.question, *p.details)) and fields.holding(p.answers)]  # fmt: skip
    if asked or pairs:
        return _pair(fields, [*asked, *pairs][0], has_tools, ignored)
    if any(key in fields for key in CONVERSATIONS[:2]):
        raise RowError("the conversation is empty or not a list")
    if fields.holding(REJECTED):
        raise RowError(*PREFERENCE)
    if "instruction" in fields:
        return _pair(fields, PAIRS[0], has_tools, ignored)
    if fields.holding(("text",)):
        raise RowError(
            "the row has a plain text and no answer to learn",
            "--objective pretrain learns it as it is; or split it into prompt and completion",
        )
    raise RowError(
        f"unknown row with keys {', '.join(sorted(map(str, fields.raw)))[:200] or '(none)'}",
        "alpaca (instruction, output), messages, conversations, prompt and completion, or question "
        "and answer; others with --columns prompt=NAME,answer=NAME",
    )


PREFERENCE = (
    "the row is a preference pair and has no single answer to learn",
    "--objective dpo learns it; or write the chosen one as the answer",
)


def is_row(raw: dict[str, Any]) -> bool:
    """Whether an object has the keys of a row, and so does not hold the rows of its file."""
    fields = Fields(raw)
    asks = any(p.question in fields and any(a in fields for a in p.answers) for p in PAIRS)
    turn_lists = any(key in fields for key in CONVERSATIONS if key != "data")
    return asks or turn_lists or bool(fields.holding((*REJECTED, *REFUSED)))


def _is_conversation(fields: Fields, key: str) -> bool:
    value = fields.raw.get(key)
    return isinstance(value, list) and bool(value) and isinstance(value[0], (str, dict))


def _pair(
    fields: Fields, pair: Pair, has_tools: bool, ignored: collections.Counter[str]
) -> list[Message]:
    """The turns of a row with a question and an answer; either may itself be a list of turns."""
    question = fields.first(pair.question)
    if isinstance(question, list):
        prompt = turns.messages(question, ignored)
    else:
        parts = text(question, pair.question), text(fields.first(*pair.details), "input")
        prompt = [Message("user", parts[0] + ("\n" + parts[1] if parts[1] else ""))]
    return [*_history(fields), *prompt, *_answer(fields, pair, has_tools, ignored)]


def _answer(
    fields: Fields, pair: Pair, has_tools: bool, ignored: collections.Counter[str]
) -> list[Message]:
    name = next((key for key in fields.holding(pair.answers)), pair.answers[0])
    answer = fields.first(*pair.answers)
    if has_tools and (calls := turns.calls_in(answer)):
        return [Message("assistant", "", calls)]
    if name == "answers" and isinstance(answer, list) and len(answer) == 1:
        (answer,) = answer
    if isinstance(answer, dict) and "content" in answer:
        answer = [answer]
    if isinstance(answer, list) and answer and all(isinstance(turn, dict) for turn in answer):
        return turns.messages(answer, ignored)
    if isinstance(answer, list) and name == "answers":
        raise RowError(
            f"the row has {len(answer)} answers", "write one row for each answer to learn"
        )
    return [Message("assistant", answer_text(answer, name))]


def _history(fields: Fields) -> list[Message]:
    """Alpaca's and ms-swift's earlier [question, answer] pairs."""
    try:
        return [
            Message(role, str(content))
            for pair in parsed(fields.first("history"), "history") or []
            for role, content in zip(("user", "assistant"), pair, strict=True)
        ]
    except (TypeError, ValueError) as error:
        if isinstance(error, RowError):
            raise
        raise RowError("history is not a list of [question, answer] pairs") from None


def _with_system(fields: Fields, messages: list[Message]) -> list[Message]:
    """The messages with the system text of a column in front."""
    value = fields.first(*SYSTEMS)
    system = turns.joined_parts(value)[0] if _in_parts(value) else text(value, "system")
    if not system:
        return messages
    if messages[0].role != "system":
        return [Message("system", system), *messages]
    if messages[0].content != system:
        raise RowError("the row has a column system and another system turn", "keep one of them")
    return messages


def _in_parts(value: Any) -> bool:
    """Whether a system text is in parts: Bedrock's list or Gemini's object."""
    return isinstance(value, list) or isinstance(value, dict) and "parts" in value


def _check_verdict(fields: Fields) -> None:
    """RowError for an answer that the row calls bad."""
    for key in fields.holding(VERDICTS):
        if isinstance(fields.raw.get(key), bool) and not fields.first(key):
            raise RowError(
                f"{key} is false: the answer is not to be learned",
                "leave the row out, or --objective kto",
            )


def _check_conversation(fields: Fields, messages: list[Message]) -> None:
    """RowError where nobody asks, or the end is no answer, or no answer is learned."""
    last = messages[-1]
    if last.role != "assistant" or not (last.content.strip() or last.tool_calls):
        if fields.holding(REJECTED):
            raise RowError(*PREFERENCE)
        raise RowError("the last turn is not an assistant's answer")
    if not any(message.role == "user" for message in messages):
        raise RowError("there is no user turn")
    if not any(message.learned for message in messages if message.role == "assistant"):
        raise RowError("every answer has weight 0 or train false: nothing is learned")


def check_text(example: Example) -> None:
    """RowError for halves of surrogate pairs, which JSON can name and which are no text."""
    texts = [*example.tools, *example.choices, *example.tags]
    for message in example.messages:
        texts += [message.content, message.reasoning, message.name, message.tool_call_id]
        texts += [
            part for call in message.tool_calls for part in (call.name, call.arguments, call.id)
        ]
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise RowError(
            f"a text has {half}, half of a surrogate pair",
            "it was cut in the middle of a character",
        ) from None
