"""Ollama's API over chat completions."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgeft.server.bodies import checked
from edgeft.server.responses import Refusal
from edgeft.server.shims import ollama
from edgeft.server.shims.answer import Answer
from edgeft.server.shims.ollama import Chat, Generate, OllamaShim
from helpers.chat_chunks import CUT, FAILED, HEAD, THINKS_SAYS_AND_CALLS, WHOLE, streamed

pytestmark = pytest.mark.unit

HI = [{"role": "user", "content": "hi"}]
ENDED = {
    "done": True, "done_reason": "stop", "total_duration": 5_000_000, "load_duration": 0,
    "prompt_eval_count": 9, "prompt_eval_duration": 2_000_000, "eval_count": 5,
    "eval_duration": 3_000_000,
}  # fmt: skip


def chat(**body: Any) -> OllamaShim:
    return OllamaShim(checked({"model": "m", "messages": HI, **body}, Chat))


def generate(**body: Any) -> OllamaShim:
    return OllamaShim(checked({"model": "m", "prompt": "hi", **body}, Generate))


def lines(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.decode().splitlines()]


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, {"stream": True, "model": "m"}),
        ({"model": "m:latest", "stream": False}, {"stream": False, "model": "m"}),
        ({"options": {"temperature": 0.5, "num_predict": 7, "stop": ["a"], "num_ctx": 8192}},
         {"temperature": 0.5, "max_tokens": 7, "stop": ["a"]}),
        ({"options": {"num_predict": -2}}, {"max_tokens": -1}),
        ({"options": {"mirostat": 2}}, {"mirostat": 2}),
        ({"format": "json"}, {"response_format": {"type": "json_object"}}),
        ({"format": {"type": "null"}}, {"response_format": {
            "type": "json_schema", "json_schema": {"name": "format", "schema": {"type": "null"}}}}),
        ({"tools": [{"type": "function"}]}, {"tools": [{"type": "function"}]}),
    ],
)  # fmt: skip
def test_fields_have_their_names_in_openais_api(body: dict[str, Any], fields: Any) -> None:
    openai = chat(**body).openai
    assert {name: openai[name] for name in fields} == fields


def test_calls_and_their_results_get_ids() -> None:
    calls = [{"function": {"name": name, "arguments": {"x": 1}}} for name in ("a", "b", "a")]
    messages = [
        *HI,
        {"role": "assistant", "content": "", "tool_calls": calls, "thinking": "hm"},
        {"role": "tool", "content": "from b", "tool_name": "b"},
        {"role": "tool", "content": "from a", "tool_name": "a"},
        {"role": "tool", "content": "from a again"},
    ]
    openai = chat(messages=messages).openai["messages"]
    ids = [call["id"] for call in openai[1]["tool_calls"]]
    assert len(set(ids)) == 3 and openai[1]["reasoning_content"] == "hm"
    assert json.loads(openai[1]["tool_calls"][0]["function"]["arguments"]) == {"x": 1}
    assert [message["tool_call_id"] for message in openai[2:]] == [ids[1], ids[0], ids[2]]


def test_a_prompt_becomes_a_chat_or_stays_a_text() -> None:
    made = generate(system="be")
    assert made.openai["messages"] == [{"role": "system", "content": "be"}, *HI]
    raw = generate(raw=True)
    assert raw.path == "/v1/completions" and raw.openai["prompt"] == "hi"
    assert raw.openai["max_tokens"] == -1 and "messages" not in raw.openai
    assert generate(raw=True, options={"num_predict": 4}).openai["max_tokens"] == 4


@pytest.mark.parametrize(
    ("make", "body", "reason"),
    [
        (chat, {"model": None}, "model"),
        (chat, {"messages": [{"role": "user", "content": "", "images": ["iVBOR"]}]}, "images"),
        (chat, {"format": "xml"}, "xml"),
        (chat, {"messages": [{"role": "assistant", "tool_calls": "x"}]}, "tool call"),
        (chat, {"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "tool call"),
        (generate, {"suffix": "x"}, "suffix"),
        (generate, {"template": "x"}, "template"),
        (generate, {"context": [1]}, "context"),
        (generate, {"images": ["iVBOR"]}, "images"),
    ],
)
def test_what_cannot_be_done_is_named(make: Any, body: dict[str, Any], reason: str) -> None:
    with pytest.raises(Refusal, match=reason) as error:
        make(**body)
    assert error.value.status == 400


def test_a_whole_answer_of_a_chat() -> None:
    answer = chat(stream=False).whole(Answer.of(WHOLE))
    assert answer["message"] == {
        "role": "assistant", "content": "The weather.", "thinking": "Let me see.",
        "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Oslo"}}},
                       {"function": {"name": "clock", "arguments": {}}}],
    }  # fmt: skip
    assert answer["model"] == "m" and answer["created_at"].endswith("Z")
    assert {name: answer[name] for name in ENDED} == ENDED


def test_a_stream_of_a_chat() -> None:
    got = lines(streamed(chat(), THINKS_SAYS_AND_CALLS, together=3))
    messages = [line["message"] for line in got]
    assert "".join(message.get("thinking", "") for message in messages) == "Let me see."
    assert "".join(message["content"] for message in messages) == "The weather."
    calls = [call["function"] for message in messages for call in message.get("tool_calls", ())]
    assert calls == [{"name": "weather", "arguments": {"city": "Oslo"}},
                     {"name": "clock", "arguments": {}}]  # fmt: skip
    assert [line["done"] for line in got] == [False] * (len(got) - 1) + [True]
    assert {name: got[-1][name] for name in ENDED} == ENDED


def test_a_stream_of_a_prompt() -> None:
    got = lines(streamed(generate(), CUT))
    assert [line["response"] for line in got] == ["One, ", "two", ""]
    assert got[-1]["done_reason"] == "length" and "message" not in got[-1]


def test_a_failure_within_a_stream() -> None:
    assert lines(streamed(chat(), FAILED))[-1] == {"error": "the engine failed"}


def test_a_text_completion_is_a_response() -> None:
    whole = HEAD | {"choices": [{"index": 0, "text": "ho", "finish_reason": "stop"}]}
    assert generate(raw=True, stream=False).whole(Answer.of(whole))["response"] == "ho"


def test_nothing_to_say_loads_the_model() -> None:
    body = checked({"model": "m"}, Generate)
    assert ollama.is_load(body) and ollama.loaded(body)["done_reason"] == "load"
    assert ollama.is_load(checked({"model": "m"}, Chat))
    assert not ollama.is_load(checked({"model": "m", "prompt": "x"}, Generate))
