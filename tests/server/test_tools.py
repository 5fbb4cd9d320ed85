"""Function calling over HTTP: what real clients send, by tiny random models that grammars hold to calls."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest

from edgeft.errors import InputError
from edgeft.records import Message, ToolCall
from edgeft.server.jobs import GenerationRequest
from edgeft.server.requests import checked
from edgeft.server.schemas import Chat
from edgeft.server.tools import Toolbox, prompt_messages, prompt_tools
from helpers.serving import Served, exported, running

BODIES: dict[str, Any] = json.loads(
    Path(__file__).with_name("tool_bodies.json").read_text(encoding="utf-8")
)
"""first requests of the official clients in Python and JavaScript, LangChain, LiteLLM, Instructor,
Pydantic AI, llm and the AI SDK"""
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {
                "unit": {"enum": ["C", "F"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 7},
            },
            "required": ["unit", "days"],
        },
    },
}
PING: Any = {"type": "function", "function": {"name": "ping"}}
ASK: Any = [{"role": "user", "content": "the lamp"}]


@pytest.fixture(scope="module")
def served(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    artifacts = exported(tiny_base, tmp_path_factory.mktemp("tools"), "f32")
    with running(*artifacts, slots=2, queue=8, context=2048) as served:
        yield served


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def functions_of(message: Any) -> list[Any]:
    """What the calls of a message call."""
    return [call.function for call in message.tool_calls or ()]


def asks_for_a_call(body: dict[str, Any]) -> bool:
    return body.get("tool_choice", body.get("function_call", "auto")) not in ("auto", "none")


@pytest.mark.parametrize("name", BODIES)
def test_what_a_client_sends_is_answered(served: Served, name: str) -> None:
    body = {**BODIES[name], "temperature": 1.5, "seed": 3, "stream": False}
    answer = served.json("/v1/chat/completions", body)["choices"][0]
    message = answer["message"]
    if asks_for_a_call(body):
        assert message["content"] is None
        (call,) = message["tool_calls"][:1]
        tools = {tool["function"]["name"] for tool in body["tools"]}
        assert call["function"]["name"] in tools and call["id"].startswith("call_")
        assert answer["finish_reason"] in ("tool_calls", "length")
    else:
        assert isinstance(message["content"], str) and "tool_calls" not in message


@pytest.mark.parametrize("seed", range(4))
def test_required_calls_fit_their_schema(client: openai.OpenAI, seed: int) -> None:
    done = client.chat.completions.create(
        model="f32", messages=ASK, tools=[WEATHER, PING], tool_choice="required", seed=seed,
        temperature=1.5, max_tokens=400, parallel_tool_calls=False,
    )  # fmt: skip
    choice = done.choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    (call,) = functions_of(choice.message)
    arguments = json.loads(call.arguments)
    if call.name == "ping":
        assert arguments == {}
    else:
        assert call.name == "get_weather" and arguments.keys() == {"unit", "days"}
        assert arguments["unit"] in "CF" and 1 <= arguments["days"] <= 7


def test_a_named_function_is_called_once(client: openai.OpenAI) -> None:
    choice: Any = {"type": "function", "function": {"name": "ping"}}
    done = client.chat.completions.create(
        model="f32", messages=ASK, tools=[WEATHER, PING], tool_choice=choice, max_tokens=100
    )
    (call,) = functions_of(done.choices[0].message)
    assert (call.name, json.loads(call.arguments)) == ("ping", {})


def test_a_stream_of_calls_is_the_whole_in_parts(client: openai.OpenAI) -> None:
    how: dict[str, Any] = {
        "model": "f32", "messages": ASK, "tools": [WEATHER, PING], "tool_choice": "required",
        "temperature": 1.5, "seed": 2, "max_tokens": 300,
    }  # fmt: skip
    whole = client.chat.completions.create(**how).choices[0]
    calls: list[list[str]] = []
    ends = []
    for chunk in client.chat.completions.create(**how, stream=True):
        for choice in chunk.choices:
            assert not choice.delta.content
            ends += [choice.finish_reason] if choice.finish_reason else []
            for part in choice.delta.tool_calls or ():
                assert part.function
                if part.index == len(calls):
                    assert part.id and part.type == "function" and part.function.name
                    calls.append([part.function.name, ""])
                calls[part.index][1] += part.function.arguments or ""
    assert calls == [[call.name, call.arguments] for call in functions_of(whole.message)]
    assert calls and ends == [whole.finish_reason]


def test_a_stream_of_the_client_library_ends_in_parsed_arguments(client: openai.OpenAI) -> None:
    strict = json.loads(json.dumps(WEATHER))
    strict["function"]["strict"] = True
    with client.chat.completions.stream(
        model="f32", messages=ASK, tools=[strict], tool_choice="required", max_tokens=300,
        parallel_tool_calls=False,
    ) as stream:  # fmt: skip
        final = stream.get_final_completion()
    (call,) = functions_of(final.choices[0].message)
    assert call.parsed_arguments.keys() == {"unit", "days"}


def test_functions_are_the_older_name_of_tools(served: Served) -> None:
    body = {"messages": ASK, "functions": [PING["function"]], "function_call": {"name": "ping"}}
    answer = served.json("/v1/chat/completions", body)["choices"][0]
    assert answer["message"]["function_call"] == {"name": "ping", "arguments": "{}"}
    assert answer["finish_reason"] == "function_call" and "tool_calls" not in answer["message"]
    _, events, _ = served.ask("POST", "/v1/chat/completions", body | {"stream": True})
    deltas = [
        json.loads(line[6:])["choices"][0]["delta"].get("function_call", {})
        for line in events.decode().split("\n")
        if line.startswith("data: {")
    ]
    assert "".join(delta.get("name", "") for delta in deltas) == "ping"
    assert "".join(delta.get("arguments", "") for delta in deltas) == "{}"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "none of the tools"),
        ({"tools": [], "tool_choice": "required"}, "there are no tools"),
        ({"tools": [PING, PING]}, "the same name"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "name"),
        ({"messages": [*ASK, {"role": "assistant", "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}}]}]},
         "not a JSON object"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_refused(served: Served, change: dict[str, Any], problem: str) -> None:
    body = {"messages": ASK, "tools": [PING], "max_tokens": 5} | change
    status, data, _ = served.ask("POST", "/v1/chat/completions", body)
    assert status == 400 and problem in json.loads(data)["error"]["message"]


def test_a_schema_that_cannot_be_followed_counts_where_it_must_be(served: Served) -> None:
    function = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"not": {}}}}}
    body: dict[str, Any] = {"messages": ASK, "max_tokens": 5}
    for extra, expected in (
        ({}, 200), ({"strict": True}, 400), ({"strict": False}, 200),
    ):  # fmt: skip
        tools = [{"type": "function", "function": function | extra}]
        status, data, _ = served.ask("POST", "/v1/chat/completions", body | {"tools": tools})
        assert status == expected, data
    asked = body | {"tools": tools, "tool_choice": "required"}
    assert served.ask("POST", "/v1/chat/completions", asked)[0] == 400


@pytest.mark.unit
def test_a_grammar_that_is_optional_is_left_out_where_the_engine_cannot_follow_it() -> None:
    def check(job: Any) -> None:
        raise InputError("the schema cannot be followed")

    engine: Any = SimpleNamespace(check=check)
    request = GenerationRequest((1,), 5)
    request = dataclasses.replace(
        request, sampling=dataclasses.replace(request.sampling, grammar="start: x")
    )
    with pytest.raises(InputError):
        checked([request], engine)
    (left,) = checked([dataclasses.replace(request, is_grammar_optional=True)], engine)
    assert left.sampling.grammar == ""


@pytest.mark.unit
def test_messages_of_tools_become_turns() -> None:
    body = Chat.model_validate({
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}]},
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "sun"}]},
            {"role": "assistant", "function_call": {"name": "g", "arguments": '{"a": 1}'}},
            {"role": "function", "name": "g", "content": "moon"},
        ]
    })  # fmt: skip
    assert prompt_messages(body.messages) == [
        Message("user", "hi"),
        Message("assistant", "", (ToolCall("f", "{}", "c1"),), reasoning="hm"),
        Message("tool", "sun", name="f", tool_call_id="c1"),
        Message("assistant", "", (ToolCall("g", '{"a": 1}'),)),
        Message("tool", "moon", name="g"),
    ]


@pytest.mark.unit
def test_which_functions_an_answer_may_call() -> None:
    def toolbox(**more: Any) -> tuple[list[str], bool, bool]:
        body = Chat.model_validate({"messages": ASK, "tools": [WEATHER, PING], **more})
        box = Toolbox.of(body)
        return [function.name for function in box.functions], box.required, box.several

    both = ["get_weather", "ping"]
    named = {"type": "function", "function": {"name": "ping"}}
    assert toolbox() == toolbox(tool_choice="auto") == (both, False, True)
    assert toolbox(parallel_tool_calls=False) == (both, False, False)
    assert toolbox(tool_choice="none") == ([], False, True)
    assert toolbox(tool_choice="required") == (both, True, True)
    assert toolbox(tool_choice=named) == (["ping"], True, False)
    assert toolbox(tools=None) == ([], False, True)
    body = Chat.model_validate({"messages": ASK, "tools": [PING], "tool_choice": "none"})
    assert prompt_tools(body) == ()
    (tool,) = prompt_tools(Chat.model_validate({"messages": ASK, "tools": [PING]}))
    assert json.loads(tool)["function"] == {
        "name": "ping", "parameters": {"type": "object", "properties": {}},
    }  # fmt: skip
