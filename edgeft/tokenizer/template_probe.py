"""A chat template + a feature of conversations -> whether the template honours it.

    failure(chat, "system turn", MessageForm())     # "" = honoured, else why not

A template may refuse what it does not know, or leave it out without a word. So each feature is a
short conversation with unusual words in it, and the rendered text has to hold these words.
llama.cpp finds the abilities of a template in the same way (common/jinja/caps.cpp).
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from edgeft.errors import InputError
from edgeft.records import Message, ToolCall
from edgeft.tokenizer.message_form import FORMS, REASONING_KEYS, MessageForm


class Template(Protocol):
    """The part of a `ChatTemplate` that is probed."""

    def __hash__(self) -> int: ...

    @property
    def source(self) -> str: ...

    @property
    def stops(self) -> tuple[str, ...]: ...

    def render_form(
        self,
        messages: Iterable[Message],
        form: MessageForm,
        generation_prompt: bool = True,
        tools: Sequence[str] = (),
    ) -> str: ...


SYSTEM, LATER_SYSTEM = "system turn", "system turn after the first turn"
TWO_SYSTEMS, TWO_USERS = "two system turns in a row", "two user turns in a row"
TWO_ASSISTANTS = "two assistant turns in a row"
TEXT, TOOLS, CALL = "text", "tools", "tool calls"
CALL_ALONE = "tool calls without tools"
TWO_CALLS, CALL_AND_TEXT = "several tool calls in one turn", "text beside tool calls"
RESULT = "results of tools"
CALL_IDS, NO_CALL_IDS = "tool call ids of any length", "tool calls without ids"
REASONING = "reasoning"

_SCHEMA = {"type": "object", "properties": {"site": {"type": "string", "description": "where"}}}
_FUNCTION = {"name": "listed_qzx", "description": "Looks it up.", "parameters": _SCHEMA}
_TOOL = (json.dumps({"type": "function", "function": _FUNCTION}),)
_CALLS = (
    ToolCall("called_qzx", '{"place": "Paris_qzx"}', "abcdef001"),
    ToolCall("called_qzx", '{"place": "Rome_qzx"}', "abcdef002"),
)
_USER, _ANSWER = Message("user", "question"), Message("assistant", "answer")
_RESULTS = tuple(
    Message("tool", f"result{i}_qzx", name=call.name, tool_call_id=call.id)
    for i, call in enumerate(_CALLS)
)


@dataclass(frozen=True)
class Probe:
    """A conversation with a feature in it."""

    messages: tuple[Message, ...]
    words: tuple[str, ...]
    """texts of the feature that the rendered conversation must hold"""
    tools: tuple[str, ...] = ()


def _two(role: str) -> tuple[Message, Message]:
    return Message(role, "first_qzx"), Message(role, "second_qzx")


def _with_id(call_id: str) -> Probe:
    call = dataclasses.replace(_CALLS[0], id=call_id)
    result = dataclasses.replace(_RESULTS[0], tool_call_id=call_id)
    return Probe((_USER, Message("assistant", "", (call,)), result), ("called_qzx",), _TOOL)


_BOTH = ("first_qzx", "second_qzx")
_CALL_WORDS = ("called_qzx", "Paris_qzx")
_CALL = Message("assistant", "", _CALLS[:1])
PROBES = {
    TEXT: Probe((Message("user", "first_qzx"), Message("assistant", "second_qzx"), _USER), _BOTH),
    SYSTEM: Probe((Message("system", "first_qzx"), _USER), ("first_qzx",)),
    LATER_SYSTEM: Probe(
        (_USER, _ANSWER, Message("system", "first_qzx"), _USER), ("first_qzx",)
    ),
    TWO_SYSTEMS: Probe((*_two("system"), _USER), _BOTH),
    TWO_USERS: Probe(_two("user"), _BOTH),
    TWO_ASSISTANTS: Probe((_USER, *_two("assistant"), _USER), _BOTH),
    TOOLS: Probe((_USER,), ("listed_qzx",), _TOOL),
    CALL: Probe((_USER, _CALL), _CALL_WORDS, _TOOL),
    CALL_ALONE: Probe((_USER, _CALL), _CALL_WORDS),
    TWO_CALLS: Probe(
        (_USER, Message("assistant", "", _CALLS), *_RESULTS), (*_CALL_WORDS, "Rome_qzx"), _TOOL
    ),
    CALL_AND_TEXT: Probe(
        (_USER, Message("assistant", "first_qzx", _CALLS[:1]), _RESULTS[0]),
        ("first_qzx", *_CALL_WORDS), _TOOL,
    ),
    CALL_IDS: _with_id("call_0123456789"),
    NO_CALL_IDS: _with_id(""),
    RESULT: Probe((_USER, _CALL, _RESULTS[0]), ("result0_qzx",), _TOOL),
    REASONING: Probe((_USER, Message("assistant", "answer", reasoning="first_qzx")), ("first_qzx",)),
}  # fmt: skip
_MISREAD = ("{'place'", '{\\"place', "'type': 'text'", '"type": "text"')
"""what a template prints that reads an object as text, text as an object, or parts as text"""
HINTS = {
    TOOLS: "take a base whose template has tools, or write them into the system turn",
    CALL: "write the calls into the answers, in the form that the base learned",
}


@functools.lru_cache(maxsize=256)
def failure(chat: Template, feature: str, form: MessageForm) -> str:
    """Why the template does not honour a feature (a key of PROBES), "" where it does."""
    probe = PROBES[feature]
    try:
        text = chat.render_form(probe.messages, form, generation_prompt=False, tools=probe.tools)
    except InputError as error:
        return error.message
    if any(sign in text for sign in _MISREAD) or not all(word in text for word in probe.words):
        return left_out(feature)
    return ""


def left_out(feature: str) -> str:
    """The reason of a `failure` where the template raises no error."""
    return f"the chat template leaves out {feature}"


def honours(chat: Template, feature: str, form: MessageForm) -> bool:
    return not failure(chat, feature, form)


def form_for(chat: Template, features: Sequence[str]) -> MessageForm:
    """The first form in which the template honours all features.

    InputError, with the reason of the template, where there is none.
    """
    for form in FORMS:
        if all(honours(chat, feature, form) for feature in features):
            return form
    reasons = {
        feature: failure(chat, feature, FORMS[0])
        for feature in features
        if not any(honours(chat, feature, form) for form in FORMS)
    }
    feature, reason = next(iter(reasons.items()), (CALL, f"the chat template has no {CALL}"))
    raise InputError(reason, HINTS.get(feature, HINTS[CALL]))


def reasoning_keys(chat: Template) -> tuple[str, ...]:
    """The keys from which the template reads the reasoning of an answer, () where it reads none."""
    forms = (MessageForm(reasoning=keys) for keys in REASONING_KEYS)
    return next((form.reasoning for form in forms if honours(chat, REASONING, form)), ())
