"""Tools, calls and results that a chat template has no place for -> turns of plain text.

    tools_as_text(chat, messages, tools)      # (turns, tools that the template renders itself, notes)
    one_call_a_turn(chat, messages)           # (turns of a prompt, notes)

The text is that of Hermes and Qwen: functions within <tools>, calls within <tool_call>, results within
<tool_response>. A template that renders calls, but no tools (DeepSeek's), shows its own form instead.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence

from edgeft.records import Message, ToolCall
from edgeft.tokenizer import template_probe as probe
from edgeft.tokenizer.message_form import FORMS
from edgeft.tokenizer.tool_calls import PHI, CallFormat, call_format, functions_of

NOTES = {
    probe.TOOLS: "the chat template has no tools: a system text lists them",
    probe.CALL: "the chat template has no tool calls: they are written into the answers",
    probe.RESULT: "the chat template has no results of tools: they are turns of the user",
    probe.TWO_CALLS: "the chat template takes one call a turn: others are turns of their own",
    probe.CALL_AND_TEXT: "the chat template has no text beside tool calls: a prompt leaves it out",
}
INSTRUCTIONS = """\
You can call these functions:
<tools>
{tools}
</tools>
To call functions, answer in this form, with the arguments by name:
{form}"""
EXAMPLE = ToolCall("NAME", '{"ARGUMENT": "VALUE"}')


def tools_as_text(
    chat: probe.Template, messages: Sequence[Message], tools: Sequence[str]
) -> tuple[list[Message], tuple[str, ...], list[str]]:
    """Whatever the template renders itself stays as it is."""
    turns, notes = list(messages), []
    if not (tools or any(turn.tool_calls or turn.role == "tool" for turn in turns)):
        return turns, (), []
    if tools and not _has(chat, probe.TOOLS):
        form = call_format(chat)
        if form:
            notes.append(NOTES[probe.TOOLS])
            turns, tools = _with_system_text(turns, _instructions(tools, form)), ()
    call = probe.CALL if tools else probe.CALL_ALONE
    if any(turn.tool_calls for turn in turns) and not _has(chat, call):
        form = call_format(chat)
        if form:
            notes.append(NOTES[probe.CALL])
            turns = [_with_calls_as_text(turn, form) for turn in turns]
    if any(turn.role == "tool" for turn in turns) and not _has(chat, probe.RESULT):
        notes.append(NOTES[probe.RESULT])
        turns = [_result_as_text(turn) if turn.role == "tool" else turn for turn in turns]
    return turns, tuple(tools), notes


def one_call_a_turn(
    chat: probe.Template, messages: Sequence[Message]
) -> tuple[list[Message], list[str]]:
    """Turns of a prompt for a template that takes one call in a turn, or no text beside it.

    Nothing is learned of a prompt, so that it may say what the assistant did in a simpler way.
    """
    turns, notes = list(messages), []
    if any(len(turn.tool_calls) > 1 for turn in turns) and not _has(chat, probe.TWO_CALLS):
        notes.append(NOTES[probe.TWO_CALLS])
        turns = _with_calls_apart(turns)
    has_both = any(turn.tool_calls and turn.content.strip() for turn in turns)
    if has_both and not _has(chat, probe.CALL_AND_TEXT):
        notes.append(NOTES[probe.CALL_AND_TEXT])
        turns = [
            dataclasses.replace(turn, content="") if turn.tool_calls else turn for turn in turns
        ]
    return turns, notes


def _with_calls_apart(turns: Sequence[Message]) -> list[Message]:
    """Each call with its result behind it, where every call has one."""
    apart: list[Message] = []
    rest = list(turns)
    while rest:
        turn, *rest = rest
        results = list(itertools.takewhile(lambda one: one.role == "tool", rest))
        if len(turn.tool_calls) < 2 or len(results) != len(turn.tool_calls):
            apart.append(turn)
            continue
        rest = rest[len(results) :]
        by_id = {result.tool_call_id: result for result in results if result.tool_call_id}
        for number, (call, result) in enumerate(zip(turn.tool_calls, results, strict=True)):
            content = "" if number else turn.content
            apart.append(dataclasses.replace(turn, content=content, tool_calls=(call,)))
            apart.append(by_id.get(call.id, result))
    return apart


def _has(chat: probe.Template, feature: str) -> bool:
    return any(probe.honours(chat, feature, form) for form in FORMS)


def _instructions(tools: Sequence[str], form: CallFormat) -> str:
    lines = [json.dumps(function, ensure_ascii=False) for function in functions_of(tools)]
    if form == PHI:  # Phi 4's template puts them there, from a key of the system turn
        return f"<|tool|>[{', '.join(lines)}]<|/tool|>"
    return INSTRUCTIONS.format(tools="\n".join(lines), form=form.write([EXAMPLE]))


def _with_system_text(turns: Sequence[Message], text: str) -> list[Message]:
    if turns and turns[0].role == "system":
        content = "\n\n".join(filter(None, (turns[0].content, text)))
        return [dataclasses.replace(turns[0], content=content), *turns[1:]]
    return [Message("system", text), *turns]


def _with_calls_as_text(turn: Message, form: CallFormat) -> Message:
    if not turn.tool_calls:
        return turn
    text = form.write(turn.tool_calls).strip()
    content = "\n".join(filter(None, (turn.content, text)))
    return dataclasses.replace(turn, content=content, tool_calls=())


def _result_as_text(turn: Message) -> Message:
    return Message("user", f"<tool_response>\n{turn.content}\n</tool_response>")
