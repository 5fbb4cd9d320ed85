"""Messages + a chat template -> the turns in the form that the template takes (`Dialogue`).

    dialogue = fit(chat, messages, tools)
    dialogue.messages, dialogue.form, dialogue.notes

What a template does not know is put another way where that is customary: a system turn becomes the
beginning of the user turn, turns of one role are joined by a blank line, tools and their calls become
text (`edgeft.tokenizer.tools_as_text`). What has no other way (several calls to learn in one turn of a
template that takes one) is refused. So nothing that a conversation holds is left out without a word.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from edgeft.errors import InputError
from edgeft.records import Message, ToolCall
from edgeft.tokenizer import template_probe as probe
from edgeft.tokenizer.message_form import MessageForm
from edgeft.tokenizer.tools_as_text import one_call_a_turn, tools_as_text

ROW_FEATURES = {
    "system": probe.TWO_SYSTEMS, "user": probe.TWO_USERS, "assistant": probe.TWO_ASSISTANTS,
}  # fmt: skip
"""role -> the feature of two of its turns in a row"""
JOINED = "the chat template takes no {feature}: they are joined by a blank line"
NOTES = {
    probe.SYSTEM: "the chat template has no system turn: its text begins the first user turn",
    probe.LATER_SYSTEM:
        "the chat template has no system turn after the first turn: its text joins the user's",
    probe.CALL_IDS:
        "the chat template takes tool call ids of nine letters and digits: others are replaced",
    probe.NO_CALL_IDS: "the chat template needs ids of tool calls: calls without one get one",
}  # fmt: skip
NINE_CHARACTERS = re.compile("[A-Za-z0-9]{9}")
"""an id of a tool call that Mistral's templates take"""


@dataclass(frozen=True)
class Dialogue:
    """A conversation that its template honours in full."""

    messages: tuple[Message, ...]
    form: MessageForm
    tools: tuple[str, ...] = ()
    """those that the template renders itself, as in `Example`"""
    notes: tuple[str, ...] = ()
    """what was put another way, in words for the user"""


def fit(
    chat: probe.Template,
    messages: Iterable[Message],
    tools: Sequence[str] = (),
    join: bool = False,
    prompt: bool = False,
) -> Dialogue:
    """InputError where the template has no place for a part of the messages.

    `join`: join assistant turns in a row also where the template takes them apart. `prompt`: nothing
    is learned of the messages (`one_call_a_turn`).
    """
    turns, tools, tool_notes = tools_as_text(chat, list(messages), tools)
    if prompt:
        turns, more_notes = one_call_a_turn(chat, turns)
        tool_notes += more_notes
    form = _form(chat, turns, tools)
    missing = [f for f in _turn_features(turns) if not probe.honours(chat, f, form)]
    if join:
        missing.append(probe.TWO_ASSISTANTS)
    notes = [NOTES.get(feature, JOINED.format(feature=feature)) for feature in missing]
    notes += tool_notes
    if probe.SYSTEM in missing:
        first_changed = 0
    elif probe.LATER_SYSTEM in missing:
        first_changed = _leading_system_turns(turns)
    else:
        first_changed = len(turns)
    if {probe.CALL_IDS, probe.NO_CALL_IDS} & set(missing):
        turns = _with_short_ids(turns)
    joined = {role for role, feature in ROW_FEATURES.items() if feature in missing}
    if first_changed < len(turns):
        joined.add("user")
        turns[first_changed:] = map(_system_as_user, turns[first_changed:])
    return Dialogue(tuple(_join(turns, joined)), form, tuple(tools), tuple(notes))


def _form(chat: probe.Template, turns: Sequence[Message], tools: Sequence[str]) -> MessageForm:
    features = _tool_features(turns, tools)
    form = probe.form_for(chat, features) if features else MessageForm()
    may_read_parts = "type" in chat.source
    if may_read_parts and probe.failure(chat, probe.TEXT, form) == probe.left_out(probe.TEXT):
        parts = dataclasses.replace(form, parts=True)
        form = parts if probe.honours(chat, probe.TEXT, parts) else form
    if any(turn.reasoning for turn in turns):
        keys = probe.reasoning_keys(chat) or form.reasoning
        form = dataclasses.replace(form, reasoning=keys)
    return form


def _leading_system_turns(turns: Sequence[Message]) -> int:
    return next((i for i, turn in enumerate(turns) if turn.role != "system"), len(turns))


def _system_as_user(turn: Message) -> Message:
    return dataclasses.replace(turn, role="user") if turn.role == "system" else turn


def _with_short_ids(turns: Sequence[Message]) -> list[Message]:
    """The turns with ids of nine characters; results without an id answer the calls in order."""
    short: list[Message] = []
    unanswered: list[str] = []
    for i, turn in enumerate(turns):
        if turn.tool_calls:
            unanswered = [
                _short_id(call.id or f"{i}.{j}") for j, call in enumerate(turn.tool_calls)
            ]
            calls = map(_with_id, turn.tool_calls, unanswered)
            turn = dataclasses.replace(turn, tool_calls=tuple(calls))
        elif turn.role == "tool":
            answered = turn.tool_call_id and _short_id(turn.tool_call_id)
            answered = answered or next(iter(unanswered), "")
            unanswered = [call for call in unanswered if call != answered]
            turn = dataclasses.replace(turn, tool_call_id=answered)
        short.append(turn)
    return short


def _with_id(call: ToolCall, call_id: str) -> ToolCall:
    return dataclasses.replace(call, id=call_id)


def _is_long(call_id: str) -> bool:
    return bool(call_id) and not NINE_CHARACTERS.fullmatch(call_id)


def _short_id(call_id: str) -> str:
    if NINE_CHARACTERS.fullmatch(call_id):
        return call_id
    return hashlib.sha256(call_id.encode()).hexdigest()[:9]


def _join(turns: Iterable[Message], roles: Collection[str]) -> list[Message]:
    """The turns, those in a row joined where their role is one of `roles`."""
    joined: list[Message] = []
    for turn in turns:
        if joined and turn.role == joined[-1].role and turn.role in roles:
            joined[-1] = _joined(joined[-1], turn)
        else:
            joined.append(turn)
    return joined


def _joined(one: Message, other: Message) -> Message:
    if one.learned != other.learned:
        raise InputError(
            "of two assistant turns in a row only one is to be learned, and the chat template takes "
            "no two in a row",
            "learn both or none of them",
        )
    content, reasoning = (
        "\n\n".join(filter(None, texts))
        for texts in ((one.content, other.content), (one.reasoning, other.reasoning))
    )
    calls = (*one.tool_calls, *other.tool_calls)
    return dataclasses.replace(one, content=content, reasoning=reasoning, tool_calls=calls)


def _tool_features(turns: Sequence[Message], tools: Sequence[str]) -> list[str]:
    calling = [turn for turn in turns if turn.tool_calls]
    used = {
        probe.TOOLS: bool(tools),
        probe.CALL: bool(calling and tools),
        probe.CALL_ALONE: bool(calling and not tools),
        probe.TWO_CALLS: any(len(turn.tool_calls) > 1 for turn in calling),
        probe.CALL_AND_TEXT: any(turn.content.strip() for turn in calling),
        probe.RESULT: any(turn.role == "tool" for turn in turns),
    }
    return [feature for feature, is_used in used.items() if is_used]


def _turn_features(turns: Sequence[Message]) -> list[str]:
    """Features that not every template knows and that can be put another way."""
    roles = [turn.role for turn in turns]
    ids = [call.id for turn in turns for call in turn.tool_calls]
    rows = [one for one, other in itertools.pairwise(roles) if one == other]
    used = {
        probe.SYSTEM: "system" in roles[:1],
        probe.CALL_IDS: any(map(_is_long, ids)),
        probe.NO_CALL_IDS: "" in ids,
        probe.LATER_SYSTEM: "system" in roles[_leading_system_turns(turns) :],
        **{feature: role in rows for role, feature in ROW_FEATURES.items()},
    }
    return [feature for feature, is_used in used.items() if is_used]
