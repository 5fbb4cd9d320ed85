"""Chunks become parts with a beginning and an end."""

from __future__ import annotations

from typing import Any

import pytest

from edgeft.server.shims.answer import Answer
from helpers.chat_chunks import CUT, HEAD, THINKS_SAYS_AND_CALLS, USAGE, WHOLE, call, chunk

pytestmark = pytest.mark.unit


def pushed(chunks: list[dict[str, Any]]) -> tuple[Answer, list[tuple[str, str, int, str]]]:
    answer = Answer()
    steps = [step for one in chunks for step in answer.push(one)] + list(answer.end())
    return answer, [(what, part.kind, part.index, text) for what, part, text in steps]


def test_each_part_begins_grows_and_ends_before_the_next() -> None:
    answer, steps = pushed(THINKS_SAYS_AND_CALLS)
    assert steps == [
        ("start", "reasoning", 0, ""), ("delta", "reasoning", 0, "Let me "),
        ("delta", "reasoning", 0, "see."), ("stop", "reasoning", 0, ""),
        ("start", "text", 1, ""), ("delta", "text", 1, "The "), ("delta", "text", 1, "weather."),
        ("stop", "text", 1, ""),
        ("start", "tool", 2, ""), ("delta", "tool", 2, '{"city": '), ("delta", "tool", 2, '"Oslo"}'),
        ("stop", "tool", 2, ""),
        ("start", "tool", 3, ""), ("delta", "tool", 3, "{}"), ("stop", "tool", 3, ""),
    ]  # fmt: skip
    assert (answer.finish_reason, answer.usage, answer.model) == ("tool_calls", USAGE, "m")


def test_a_whole_answer_has_the_parts_of_its_stream() -> None:
    streamed, _ = pushed(THINKS_SAYS_AND_CALLS)
    whole = Answer.of(WHOLE)

    def facts(answer: Answer) -> list[tuple[Any, ...]]:
        return [(p.kind, p.index, p.text, p.name, p.call_id) for p in answer.parts]

    assert facts(whole) == facts(streamed)
    assert whole.message() == streamed.message() == WHOLE["choices"][0]["message"]
    assert whole.finish_reason == streamed.finish_reason and whole.timings == streamed.timings


def test_an_answer_without_a_word_is_an_empty_text() -> None:
    answer, steps = pushed([chunk({"role": "assistant", "content": ""}), chunk({}, "stop")])
    assert steps == [("start", "text", 0, ""), ("stop", "text", 0, "")]
    assert answer.message() == {"role": "assistant", "content": ""}


def test_calls_without_words_have_no_content() -> None:
    answer, _ = pushed([chunk({"tool_calls": [call(0, "", "clock", "a")]}, "tool_calls")])
    message = answer.message()
    assert message["content"] is None and message["tool_calls"][0]["function"]["arguments"] == "{}"


def test_a_call_without_an_id_gets_one() -> None:
    answer, _ = pushed([chunk({"tool_calls": [call(0, "{}", "clock")]})])
    assert answer.parts[0].call_id.startswith("call_") and len(answer.parts[0].call_id) > 20


def test_the_text_that_ended_an_answer_is_known() -> None:
    answer, _ = pushed([chunk({"content": "a"}, "stop", stop_reason="END")])
    assert answer.stop_text == "END" and pushed(CUT)[0].stop_text is None


def test_a_text_completion_is_one_text() -> None:
    answer = Answer.of(HEAD | {"choices": [{"index": 0, "text": "hi", "finish_reason": "stop"}]})
    assert [(part.kind, part.text) for part in answer.parts] == [("text", "hi")]
    answer, steps = pushed(
        [HEAD | {"choices": [{"text": "h"}]}, HEAD | {"choices": [{"text": "i"}]}]
    )
    assert answer.parts[0].text == "hi" and len(steps) == 4
