"""Anthropic's Messages API over chat completions."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgeft.server.bodies import checked
from edgeft.server.responses import Refusal
from edgeft.server.shims.answer import Answer
from edgeft.server.shims.anthropic import AnthropicShim, CountTokens, Messages, error_body
from helpers.chat_chunks import CUT, FAILED, THINKS_SAYS_AND_CALLS, WHOLE, chunk, events, streamed

pytestmark = pytest.mark.unit

HI = [{"role": "user", "content": "hi"}]
TOOL = {"name": "weather", "description": "of a city", "input_schema": {"type": "object"}}


def shim(**body: Any) -> AnthropicShim:
    return AnthropicShim(checked({"max_tokens": 9, "messages": HI, **body}, Messages))


def test_a_conversation_with_tools_becomes_messages() -> None:
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "Oslo?", "cache_control": {}}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": "x"}, {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Oslo"}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "sunny"}]},
            {"type": "text", "text": "and now?"}]},
    ]  # fmt: skip
    openai = shim(messages=turns, system=[{"type": "text", "text": "be"}], tools=[TOOL]).openai
    system, question, answer, result, more = openai["messages"]
    assert system == {"role": "system", "content": [{"type": "text", "text": "be"}]}
    assert question["content"][0]["text"] == "Oslo?"
    assert answer["reasoning_content"] == "hm" and answer["content"][0]["text"] == "I look."
    call = {"name": "weather", "arguments": '{"city": "Oslo"}'}
    assert answer["tool_calls"] == [{"id": "t1", "type": "function", "function": call}]
    content = [{"type": "text", "text": "sunny"}]
    assert result == {"role": "tool", "tool_call_id": "t1", "content": content}
    assert more == {"role": "user", "content": [{"type": "text", "text": "and now?"}]}
    function = {"name": "weather", "description": "of a city", "parameters": {"type": "object"}}
    assert openai["tools"] == [{"type": "function", "function": function}]


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"stop_sequences": ["a"], "top_k": 3}, {"stop": ["a"], "max_tokens": 9, "top_k": 3}),
        ({"tool_choice": {"type": "any"}}, {"tool_choice": "required"}),
        ({"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
         {"tool_choice": "auto", "parallel_tool_calls": False}),
        ({"tool_choice": {"type": "none"}}, {"tool_choice": "none"}),
        ({"tool_choice": {"type": "tool", "name": "f"}},
         {"tool_choice": {"type": "function", "function": {"name": "f"}}}),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"type": "null"}}}},
         {"response_format": {"type": "json_schema",
                              "json_schema": {"name": "output", "schema": {"type": "null"}}}}),
        ({"stream": True}, {"stream": True}),
    ],
)  # fmt: skip
def test_fields_have_their_names_in_openais_api(body: dict[str, Any], fields: Any) -> None:
    openai = shim(**body).openai
    assert {name: openai[name] for name in fields} == fields


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "redacted_thinking"}]}]}, "redacted"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search_20250305"),
        ({"tool_choice": {"type": ["x"]}}, "tool_choice"),
        ({"n": 2}, "n is not supported"),
    ],
)
def test_what_cannot_be_done_is_named(body: dict[str, Any], reason: str) -> None:
    with pytest.raises(Refusal, match=reason) as error:
        shim(**body)
    assert error.value.status == 400


def test_whether_to_think() -> None:
    kinds = {"enabled": True, "adaptive": True, "disabled": False}
    assert {kind: shim(thinking={"type": kind}).thinking for kind in kinds} == kinds
    assert shim().thinking is None


def test_a_whole_answer() -> None:
    message = shim().whole(Answer.of(WHOLE))
    assert message["type"] == "message" and message["id"].startswith("msg_")
    assert message["content"] == [
        {"type": "thinking", "thinking": "Let me see.", "signature": ""},
        {"type": "text", "text": "The weather."},
        {"type": "tool_use", "id": "call_a", "name": "weather", "input": {"city": "Oslo"}},
        {"type": "tool_use", "id": "call_b", "name": "clock", "input": {}},
    ]
    assert (message["stop_reason"], message["stop_sequence"]) == ("tool_use", None)
    assert message["usage"] == {
        "input_tokens": 5, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 4,
        "output_tokens": 5,
    }  # fmt: skip


@pytest.mark.parametrize("together", [1, 4, 99])
def test_the_events_of_a_stream_come_in_anthropics_order(together: int) -> None:
    got = events(streamed(shim(stream=True), THINKS_SAYS_AND_CALLS, together))
    kinds = [event["type"] for event in got]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    two = [block[0], block[1], block[1], block[2]]
    thoughts = [block[0], *[block[1]] * 3, block[2]]
    assert kinds == ["message_start", *thoughts, *two * 2, *block, "message_delta", "message_stop"]
    assert got[0]["message"]["content"] == [] and got[0]["message"]["usage"]["input_tokens"] == 5
    assert [e["index"] for e in got if e["type"] == block[0]] == [0, 1, 2, 3]
    deltas = [event["delta"] for event in got if event["type"] == block[1]]
    assert deltas[0] == {"type": "thinking_delta", "thinking": "Let me "}
    assert deltas[2] == {"type": "signature_delta", "signature": ""}
    assert deltas[3] == {"type": "text_delta", "text": "The "}
    partial = [d["partial_json"] for d in deltas if d["type"] == "input_json_delta"]
    assert json.loads("".join(partial[:2])) == {"city": "Oslo"} and partial[2] == "{}"
    assert got[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert got[-2]["usage"]["output_tokens"] == 5


def test_why_an_answer_ended() -> None:
    assert events(streamed(shim(), CUT))[-2]["delta"]["stop_reason"] == "max_tokens"
    stopped = [chunk({"content": "a"}, "stop", stop_reason="END")]
    end = events(streamed(shim(), stopped))[-2]["delta"]
    assert end == {"stop_reason": "stop_sequence", "stop_sequence": "END"}
    ended = events(streamed(shim(), [chunk({}, "stop")]))[-2]["delta"]
    assert ended["stop_reason"] == "end_turn"


def test_a_failure_within_a_stream_is_an_error_event() -> None:
    *before, last = events(streamed(shim(), FAILED))
    assert last == error_body("the engine failed", 500) and before[-1]["delta"]["text"] == "One, "
    assert last["error"]["type"] == "api_error"


def test_counting_needs_no_max_tokens() -> None:
    assert "max_tokens" not in AnthropicShim(checked({"messages": HI}, CountTokens)).openai
