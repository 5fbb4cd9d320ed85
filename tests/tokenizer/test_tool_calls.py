"""Calls are read in the form that the chat template renders them in, whole or as they come."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import pytest

from edgeft.errors import InputError
from edgeft.progress import say_once
from edgeft.records import Message, ToolCall
from edgeft.tokenizer.answer_parts import AnswerForm, AnswerParts
from edgeft.tokenizer.answer_stream import AnswerStream
from edgeft.tokenizer.tool_calls import (
    GRANITE,
    HERMES,
    LFM,
    PHI,
    CallFormat,
    call_format,
)
from helpers.call_forms import CALLS, PLAIN, TEMPLATES, TOOLS

pytestmark = pytest.mark.unit
TOOL_TEXTS = tuple(
    json.dumps({"type": "function", "function": {"name": name, "parameters": schema}})
    for name, schema in TOOLS.items()
)


def form_of(name: str) -> CallFormat:
    form = call_format(TEMPLATES[name])
    assert form
    return form


def values(calls: Sequence[ToolCall]) -> list[tuple[str, object]]:
    return [(call.name, json.loads(call.arguments)) for call in calls]


def cases() -> list[tuple[str, str]]:
    return [(t, c) for t in TEMPLATES for c in CALLS if (t, c) != ("llama", "three")]


@pytest.mark.parametrize(("name", "calls"), cases())
def test_what_the_template_renders_is_read_as_the_calls(name: str, calls: str) -> None:
    chat = TEMPLATES[name]
    asked = Message("user", "hi")
    turn = Message("assistant", "", tuple(
        dataclasses.replace(call, id=f"abcdef00{i}") for i, call in enumerate(CALLS[calls])
    ))  # fmt: skip
    prompt = chat.render([asked], tools=TOOL_TEXTS)
    answer = chat.render([asked, turn], False, TOOL_TEXTS).removeprefix(prompt)
    answer = answer.removesuffix("<|end|>")
    content, read = form_of(name).read(answer, TOOLS)
    assert (content, values(read)) == ("", values(CALLS[calls]))
    written = form_of(name).write(turn.tool_calls)
    assert values(form_of(name).read(written, TOOLS)[1]) == values(CALLS[calls])
    if form_of(name).marker:
        content, read = form_of(name).read(f"One moment.\n{answer}\n", TOOLS)
        assert (content, values(read)) == ("One moment.", values(CALLS[calls]))


@pytest.mark.parametrize(("name", "calls"), cases())
@pytest.mark.parametrize("thinks", [False, True])
def test_a_stream_has_the_parts_of_the_whole(name: str, calls: str, thinks: bool) -> None:
    form = AnswerForm(calls=form_of(name), tools=TOOLS)
    text = form_of(name).write(CALLS[calls])
    if form_of(name).marker:
        text = f"One moment. <b\n{text}"
    if thinks:
        form = dataclasses.replace(form, tag="<think>", closing_tag="</think>")
        text = f"<think>\nwhy < so\n</think>\n\n{text}"
    stream, reasoning, content = AnswerStream(form), "", ""
    came: list[list[str]] = []
    for i, char in enumerate(text):
        thought, more, parts = stream.push(char, i == len(text) - 1)
        reasoning, content = reasoning + thought, content + more
        for index, call_name, arguments in parts:
            if call_name:
                assert index == len(came)
                came.append([call_name, ""])
            came[index][1] += arguments
    whole = form.parts(text)
    assert (reasoning, content) == (whole.reasoning, whole.content)
    assert came == [[call.name, call.arguments] for call in whole.calls]
    assert values(whole.calls) == values(CALLS[calls])


def test_arguments_are_streamed_as_they_come() -> None:
    stream = AnswerStream(AnswerForm(calls=HERMES))
    text = HERMES.write([ToolCall("note", '{"text": "a long one"}')])
    middle = text.index("long")
    assert stream.push(text[:middle])[2] == [(0, "note", '{"text": "a ')]
    assert stream.push(text[middle:], True)[2] == [(0, "", 'long one"}')]


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name":"ping","arguments":{}}</tool_call>',
        '<tool_call>\n{"arguments": {}, "name": "ping"}\n</tool_call>',
        '<tool_call> {"name": "ping", "parameters": {}} </tool_call>',
        '<tool_call>[{"name": "ping"}]</tool_call>',
        '<tool_call>{"type": "function", "function": {"name": "ping", "arguments": "{}"}}</tool_call>',
        '<tool_call>\n{"name": "ping", "arguments": {}}',
    ],
)
def test_a_call_in_a_slightly_other_form_is_read(text: str) -> None:
    assert HERMES.read(text) == ("", [ToolCall("ping", "{}")])


@pytest.mark.parametrize(
    "text",
    ["no call", "a < b", "<tool_call>", "<tool_call>nothing</tool_call>", '{"name": "ping"}', ""],
)
def test_text_without_a_call_stays_as_it_is(text: str) -> None:
    assert HERMES.read(text) == (text, [])
    stream = AnswerStream(AnswerForm(calls=HERMES))
    parts = [stream.push(char) for char in text] + [stream.push("", True)]
    assert "".join(content for _, content, _ in parts) == text


def test_json_without_a_marker_is_a_call_only_of_a_known_function() -> None:
    form = form_of("llama")
    ping = '{"name": "ping", "parameters": {}}'
    assert form.read(ping, TOOLS) == ("", [ToolCall("ping", "{}")])
    assert form.read(f"<|python_tag|>{ping}", TOOLS) == ("", [ToolCall("ping", "{}")])
    other = '{"name": "Ada", "age": 3}'
    assert form.read(other, TOOLS) == (other, [])
    assert form.read(f"It is {ping}", TOOLS) == (f"It is {ping}", [])


def test_a_marker_that_begins_no_call_does_not_hide_the_call_behind_it() -> None:
    text = "A <tool_call> is this:\n" + HERMES.write([ToolCall("ping", "{}")])
    assert HERMES.read(text) == ("A <tool_call> is this:", [ToolCall("ping", "{}")])


def test_arguments_that_were_cut_off_are_what_came() -> None:
    text = HERMES.write([ToolCall("note", '{"text": "a long one"}')])
    cut = text[: text.index("one")]
    assert HERMES.read(cut) == ("", [ToolCall("note", '{"text": "a long ')])
    broken = '<tool_call>\n{"name": "note", "arguments": {text}}\n</tool_call> Done.'
    content, calls = HERMES.read(broken)
    assert (content, calls) == ("Done.", [ToolCall("note", "{text}")])


def test_values_between_tags_have_the_types_of_the_schema() -> None:
    schema = {
        "type": "object",
        "properties": {
            "zip": {"type": "string"}, "n": {"type": "integer"}, "any": {},
            "on": {"type": ["boolean", "null"]}, "code": {"type": "string"},
        },
    }  # fmt: skip
    code = "  if x < 3:\n    <b>\n"
    text = (
        "<tool_call>\n<function=f>\n<parameter=zip>\n01234\n</parameter>\n<parameter=n>\n3\n</parameter>\n"
        "<parameter=any>\nword\n</parameter>\n<parameter=on>\ntrue\n</parameter>\n"
        f"<parameter=code>\n{code}\n</parameter>\n</function>\n</tool_call>"
    )
    _, calls = form_of("qwen coder").read(text, {"f": schema})
    assert values(calls) == [
        ("f", {"zip": "01234", "n": 3, "any": "word", "on": True, "code": code})
    ]


def test_a_template_without_calls_has_the_form_of_hermes_or_its_models_own() -> None:
    assert call_format(PLAIN) == HERMES
    for word, form in (("<|tool_list_start|>", LFM), ("<|tool|>", PHI), ("<|tool_call|>", GRANITE)):
        chat = dataclasses.replace(PLAIN, source="{# " + word + " #}" + PLAIN.source)
        assert call_format(chat) == form


def test_a_form_that_is_not_understood_is_none() -> None:
    source = TEMPLATES["hermes"].source.replace("<tool_call>\n", "").replace("</tool_call>", "")
    reversed_source = source.replace('{"name": "{{ f.name }}", "arguments": ', "").replace(
        "{{ f.arguments | tojson }}}", "{{ f.arguments | tojson }} <- {{ f.name }}"
    )
    assert call_format(dataclasses.replace(PLAIN, source=reversed_source)) is None


def test_tools_and_calls_are_text_where_the_template_has_no_place_for_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    say_once.cache_clear()
    call = ToolCall("ping", "{}")
    turns = [
        Message("system", "Be kind."), Message("user", "hi"), Message("assistant", "Yes.", (call,)),
        Message("tool", "pong", name="ping"),
    ]  # fmt: skip
    text = PLAIN.render(turns, tools=TOOL_TEXTS[2:])
    assert text == (
        "<|system|>Be kind.\n\nYou can call these functions:\n<tools>\n"
        '{"name": "ping", "parameters": {"type": "object", "properties": {}}}\n</tools>\n'
        "To call functions, answer in this form, with the arguments by name:\n<tool_call>\n"
        '{"name": "NAME", "arguments": {"ARGUMENT": "VALUE"}}\n</tool_call><|end|><|user|>hi<|end|>'
        '<|assistant|>Yes.\n<tool_call>\n{"name": "ping", "arguments": {}}\n</tool_call><|end|>'
        "<|tool|>pong<|end|><|assistant|>"
    )
    notes = capsys.readouterr().err
    assert "has no tools: a system text lists them" in notes and "has no tool calls" in notes
    with pytest.raises(InputError, match="not a JSON object"):
        HERMES.write([ToolCall("ping", "[]")])


def test_a_prompt_has_one_call_a_turn_where_the_template_takes_one() -> None:
    chat = TEMPLATES["llama"]
    one, two = ToolCall("ping", '{"a": 1}', "c1"), ToolCall("ping", '{"a": 2}', "c2")
    turns = [
        Message("user", "hi"), Message("assistant", "", (one, two)),
        Message("tool", "second", tool_call_id="c2"), Message("tool", "first", tool_call_id="c1"),
    ]  # fmt: skip
    text = chat.render(turns, tools=TOOL_TEXTS)
    places = [text.index(word) for word in ('{"a": 1}', "first", '{"a": 2}', "second")]
    assert places == sorted(places)
    for asked, generation_prompt in ((turns, False), (turns[:3], True)):
        with pytest.raises(InputError, match="single tool-calls"):
            chat.render(asked, generation_prompt, TOOL_TEXTS)


def test_reasoning_is_split_by_the_tags_of_the_template() -> None:
    knows = dataclasses.replace(PLAIN, source=PLAIN.source + "{# </think> #}")
    prompt = "<|user|>hi<|end|><|assistant|>"
    form = AnswerForm.of(knows, prompt)
    assert form.parts("<think>\nwhy\n</think>\n\nso") == AnswerParts("why", "so")
    assert form.parts("so <think>") == AnswerParts("", "so <think>")
    assert form.parts("<think>\nwh") == AnswerParts("wh", "")
    assert AnswerForm.of(PLAIN, prompt).parts("<think>a</think>b").content == "<think>a</think>b"
    opened = AnswerForm.of(knows, prompt + "<think>\n")
    assert opened.opened and opened.parts("why</think>so") == AnswerParts("why", "so")
    assert opened.parts("<think>why</think>so") == AnswerParts("why", "so")
    closed = AnswerForm.of(knows, prompt + "<think>\n\n</think>\n\n")
    assert closed.parts("</think> is a tag") == AnswerParts("", "</think> is a tag")
