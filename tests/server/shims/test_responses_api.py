"""OpenAI's Responses API over chat completions."""

from __future__ import annotations

from typing import Any

import pytest

from edgeft.server.bodies import checked
from edgeft.server.responses import Refusal
from edgeft.server.shims.answer import Answer
from edgeft.server.shims.responses_api import Responses, ResponsesShim
from edgeft.server.shims.stored_responses import StoredResponses
from helpers.chat_chunks import CUT, FAILED, THINKS_SAYS_AND_CALLS, USAGE, WHOLE, events, streamed

pytestmark = pytest.mark.unit

SCHEMA = {"type": "object", "properties": {}}


def shim(stored: StoredResponses | None = None, **body: Any) -> ResponsesShim:
    body = {"input": "hi", **body}
    return ResponsesShim(checked(body, Responses), stored or StoredResponses())


def test_items_become_messages() -> None:
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "Oslo?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [],
         "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant",
         "content": [{"type": "output_text", "text": "I look.", "annotations": []}]},
        {"type": "function_call", "call_id": "a", "name": "weather", "arguments": "{}"},
        {"type": "function_call", "call_id": "b", "name": "clock", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": "sunny"},
        {"type": "function_call_output", "call_id": "b",
         "output": [{"type": "input_text", "text": "noon"}]},
        {"type": "reasoning", "summary": []},
        {"role": "developer", "content": "be brief"},
    ]  # fmt: skip
    messages = shim(input=items, instructions="be").openai["messages"]
    assert [message["role"] for message in messages] == [
        "system", "user", "assistant", "tool", "tool", "developer"]  # fmt: skip
    assert messages[1]["content"] == [{"type": "text", "text": "Oslo?"}]
    assert messages[2]["reasoning_content"] == "hm"
    assert messages[2]["content"][0]["text"] == "I look."
    assert [call["id"] for call in messages[2]["tool_calls"]] == ["a", "b"]
    assert messages[3] == {"role": "tool", "tool_call_id": "a", "content": "sunny"}
    assert messages[4]["content"] == [{"type": "text", "text": "noon"}]


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"max_output_tokens": 7.0, "top_k": 3}, {"max_completion_tokens": 7, "top_k": 3}),
        ({"text": {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA, "strict": True}}},
         {"response_format": {"type": "json_schema",
                              "json_schema": {"name": "s", "schema": SCHEMA, "strict": True}}}),
        ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
        ({"tools": [{"type": "function", "name": "f", "parameters": SCHEMA, "strict": True}]},
         {"tools": [{"type": "function",
                     "function": {"name": "f", "parameters": SCHEMA, "strict": True}}]}),
        ({"tool_choice": "required"}, {"tool_choice": "required"}),
        ({"tool_choice": {"type": "function", "name": "f"}},
         {"tool_choice": {"type": "function", "function": {"name": "f"}}}),
        ({"top_logprobs": 2}, {"logprobs": True, "top_logprobs": 2}),
        ({"include": ["message.output_text.logprobs"]}, {"logprobs": True, "top_logprobs": 0}),
    ],
)  # fmt: skip
def test_fields_have_their_names_in_openais_other_api(body: dict[str, Any], fields: Any) -> None:
    openai = shim(**body).openai
    assert {name: openai[name] for name in fields} == fields


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "item_reference"),
        ({"tools": [{"type": "web_search"}]}, "web_search"),
        ({"tool_choice": {"type": "file_search"}}, "file_search"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"previous_response_id": "resp_x"}, "no response 'resp_x'"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
    ],
)
def test_what_cannot_be_done_is_named(body: dict[str, Any], reason: str) -> None:
    with pytest.raises(Refusal, match=reason) as error:
        shim(**body)
    assert error.value.status == 400


def test_whether_to_think() -> None:
    assert shim(reasoning={"effort": "none"}).thinking is False
    assert shim(reasoning={"effort": "low"}).thinking is True
    assert shim(reasoning={"summary": "auto"}).thinking is shim().thinking is None


def test_a_whole_answer() -> None:
    response = shim(metadata={"a": "b"}).whole(Answer.of(WHOLE))
    assert response["status"] == "completed" and response["metadata"] == {"a": "b"}
    thought, said, *calls = response["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": "Let me see."}]
    assert said["content"] == [
        {"type": "output_text", "text": "The weather.", "annotations": [], "logprobs": []}
    ]
    assert [(call["call_id"], call["name"], call["arguments"]) for call in calls] == [
        ("call_a", "weather", '{"city": "Oslo"}'), ("call_b", "clock", "{}")]  # fmt: skip
    assert [item["id"].split("_")[0] for item in response["output"]] == ["rs", "msg", "fc", "fc"]
    assert response["usage"] == {
        "input_tokens": 9, "input_tokens_details": USAGE["prompt_tokens_details"],
        "output_tokens": 5, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 14,
    }  # fmt: skip


@pytest.mark.parametrize("together", [1, 3, 99])
def test_the_events_of_a_stream_come_in_openais_order(together: int) -> None:
    got = events(streamed(shim(stream=True), THINKS_SAYS_AND_CALLS, together))
    assert [event["sequence_number"] for event in got] == list(range(len(got)))
    text = "response.output_text"
    call = "response.function_call_arguments"
    added, done = "response.output_item.added", "response.output_item.done"
    assert [event["type"] for event in got] == [
        "response.created", "response.in_progress",
        added, *["response.reasoning_text.delta"] * 2, "response.reasoning_text.done", done,
        added, "response.content_part.added", f"{text}.delta", f"{text}.delta", f"{text}.done",
        "response.content_part.done", done,
        added, f"{call}.delta", f"{call}.delta", f"{call}.done", done,
        added, f"{call}.delta", f"{call}.done", done,
        "response.completed",
    ]  # fmt: skip
    items = {event["output_index"]: event["item"] for event in got if event["type"] == done}
    assert [*items.values()] == got[-1]["response"]["output"]
    for event in got:
        if "item_id" in event:
            assert event["item_id"] == items[event["output_index"]]["id"]
    begun = [event["item"] for event in got if event["type"] == added]
    assert [item["status"] for item in begun] == ["in_progress"] * 4
    assert begun[1]["content"] == [] and begun[2]["arguments"] == ""
    assert (
        got[0]["response"]["usage"] is None and got[-1]["response"]["usage"]["total_tokens"] == 14
    )


def test_an_answer_that_was_cut_is_incomplete() -> None:
    last = events(streamed(shim(), CUT))[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert last["response"]["output"][0]["content"][0]["text"] == "One, two"


def test_a_failure_within_a_stream() -> None:
    last = events(streamed(shim(), FAILED))[-1]
    assert last["type"] == "response.failed" and last["response"]["status"] == "failed"
    assert last["response"]["error"] == {"code": "server_error", "message": "the engine failed"}


def test_a_conversation_goes_on_without_the_earlier_instructions() -> None:
    stored = StoredResponses()
    first = shim(stored, instructions="be").whole(Answer.of(WHOLE))
    more = {"type": "function_call_output", "call_id": "call_a", "output": "sunny"}
    second = shim(stored, input=[more], previous_response_id=first["id"])
    user, answer, result = second.openai["messages"]
    assert user == {"role": "user", "content": "hi"}
    assert answer == WHOLE["choices"][0]["message"]
    assert result == {"role": "tool", "tool_call_id": "call_a", "content": "sunny"}
    final = events(streamed(second, CUT))[-1]["response"]
    assert final["previous_response_id"] == first["id"]
    third = shim(stored, previous_response_id=final["id"], instructions="new").openai["messages"]
    assert [m["role"] for m in third] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
        "user",
    ]


def test_an_answer_that_shall_not_be_stored_is_not() -> None:
    stored = StoredResponses()
    response = shim(stored, store=False).whole(Answer.of(WHOLE))
    assert response["store"] is False and stored.messages(response["id"]) is None
