"""An answer that is split while it comes, held to `AnswerForm.parts` of all that has come."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from edgeft.records import ToolCall
from edgeft.tokenizer.answer_parts import AnswerForm, AnswerParts
from edgeft.tokenizer.answer_stream import AnswerStream
from edgeft.tokenizer.tool_calls import HERMES, CallFormat
from helpers.call_forms import TOOLS

pytestmark = pytest.mark.unit

LLAMA = CallFormat('{"name": "', '", "parameters": ', "", "}")
PING = ToolCall("ping", '{"a": "x<tool_call>", "b": [1, 2]}')
TEXTS = [
    "", "  \n", "plain text, < and <th and </thin and <tool", " <think>\n why so \n\n</think>\n\n so.\n",
    "<think></think>done", "<think>never closed <", "<thin air>", "why\n</think>\n\n", "a\n\n</think>b </think> c",
    "<think>a</think>\n{", '{"name": "Ada", "age": 3}', '{"name": "ping", "parameters": {"a": [1]}} and more ',
    "It is {\n", f"Yes.  \n{HERMES.write([PING, PING])}\nand more <tool_call> of it\n ",
    "A <tool_call> is this: \n" + HERMES.write([PING]), "<think>x</think>" + HERMES.write([PING])[:-20],
    "ends with blanks   \n\n  ",
]  # fmt: skip


def forms() -> Iterator[AnswerForm]:
    for calls in (None, HERMES, LLAMA):
        yield AnswerForm(calls=calls, tools=TOOLS)
        for opened in (False, True):
            yield AnswerForm("<think>", "</think>", opened, calls, TOOLS)


def added(before: AnswerParts, now: AnswerParts) -> tuple[str, str, list[tuple[int, str, str]]]:
    """What `now` has more than `before`."""

    def more(old: str, new: str) -> str:
        return new[len(old) :] if new.startswith(old) else ""

    calls = []
    for index, call in enumerate(now.calls):
        known = index < len(before.calls)
        arguments = more(before.calls[index].arguments if known else "", call.arguments)
        if arguments or not known:
            calls.append((index, "" if known else call.name, arguments))
    return more(before.reasoning, now.reasoning), more(before.content, now.content), calls


@pytest.mark.parametrize("text", TEXTS)
def test_every_piece_adds_what_the_whole_has_more(text: str) -> None:
    draw = random.Random(text)
    for form in forms():
        for longest in (1, 2, 9, 1000):
            stream, sent, at = AnswerStream(form), AnswerParts(), 0
            while at <= len(text):
                length = draw.randint(1, longest)
                final = at + length > len(text)
                now = form.parts(text[: at + length], final)
                assert stream.push(text[at : at + length], final) == added(sent, now), (form, at)
                assert stream.calls == now.calls
                sent, at = now, at + length


@pytest.mark.parametrize("form", list(forms()))
def test_what_was_given_is_not_kept(form: AnswerForm) -> None:
    stream = AnswerStream(form)
    for piece in ["So "] * 500 + ["</think>"] + ["it is. "] * 500:
        stream.push(piece)
        assert len(stream._pending) < 20
