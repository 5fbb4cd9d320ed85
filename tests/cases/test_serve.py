"""Requests of real clients that once failed, or were answered as if a field of theirs was not there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.serving import Served, exported, running

CHAT, TEXT, VECTOR = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
HI = [{"role": "user", "content": "Say hello."}]
LONG = "word " * 120
"""more tokens of the tiny vocabulary than a batch has"""


@pytest.fixture(scope="module")
def served(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    (artifact,) = exported(tiny_base, tmp_path_factory.mktemp("cases"), "f32")
    with running(artifact, slots=2, context=1024, max_tokens=100) as served:
        yield served


def asked(served: Served, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    status, data, _ = served.ask("POST", path, body)
    return status, json.loads(data)


def content(answer: Any) -> str:
    return str(answer["choices"][0]["message"]["content"])


def of(**properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": [*properties],
              "additionalProperties": False}  # fmt: skip
    return {"type": "json_schema", "json_schema": {"name": "s", "strict": True, "schema": schema}}


def value(key: str) -> Callable[[Any], Any]:
    return lambda answer: json.loads(content(answer))[key]


@pytest.mark.parametrize(
    ("more", "is_right"),
    [
        ({"max_tokens": 90, "logit_bias": {"198": 6}, "response_format": of(poem={"type": "string", "maxLength": 10})},
         lambda answer: isinstance(value("poem")(answer), str)),
        ({"response_format": of(a={"type": "string", "pattern": r"^\d{3}-\d{4}$"})},
         lambda answer: re.fullmatch(r"\d{3}-\d{4}", value("a")(answer))),
        ({"response_format": of(age={"type": "integer", "minimum": 18, "maximum": 20})},
         lambda answer: 18 <= value("age")(answer) <= 20),
        ({"response_format": {"type": "json_object", "schema": of(r={"enum": [1]})["json_schema"]["schema"]}},
         lambda answer: value("r")(answer) == 1),
        ({"grammar": 'root ::= "yes"'}, lambda answer: content(answer) == "yes"),
        ({"structured_outputs": {"choice": ["a", "b"]}}, lambda answer: content(answer) in "ab"),
        ({"max_tokens": 8192}, lambda answer: answer["usage"]["completion_tokens"] <= 100),
        ({"max_tokens": -1, "stop": ["."]}, content),
        ({"max_tokens": 5, "stop": ""}, content),
        ({"max_tokens": 5, "stop": [f"z{i}" for i in range(17)]}, content),
        ({"max_tokens": 5.0, "top_k": 40.0}, content),
        ({"max_tokens": 3}, lambda answer: answer["system_fingerprint"].startswith("fp_")),
    ],
)  # fmt: skip
def test_chats(served: Served, more: dict[str, Any], is_right: Callable[[Any], Any]) -> None:
    status, answer = asked(served, CHAT, {"messages": HI, **more})
    assert status == 200 and is_right(answer), answer


@pytest.mark.parametrize(
    ("path", "body", "is_right"),
    [
        (TEXT, {"prompt": "a", "logprobs": 0, "max_tokens": 2, "ignore_eos": True},
         lambda answer: all(map(len, answer["choices"][0]["logprobs"]["top_logprobs"]))),
        (TEXT, {"prompt": ["a", [5, 6]], "max_tokens": 2}, lambda answer: len(answer["choices"]) == 2),
        (TEXT, {"prompt": "a", "response_format": of(r={"enum": [1]})},
         lambda answer: json.loads(answer["choices"][0]["text"]) == {"r": 1}),
        (VECTOR, {"input": LONG}, lambda answer: answer["usage"]["prompt_tokens"] > 512),
        (VECTOR, {"input": "a", "dimensions": 8}, lambda answer: len(answer["data"][0]["embedding"]) == 8),
        (VECTOR, {"input": "a", "encoding_format": None}, lambda answer: answer["data"]),
        (VECTOR, {"input": [f"text {i}" for i in range(100)]}, lambda answer: len(answer["data"]) == 100),
    ],
)  # fmt: skip
def test_texts_and_vectors(
    served: Served, path: str, body: dict[str, Any], is_right: Callable[[Any], Any]
) -> None:
    status, answer = asked(served, path, body)
    assert status == 200 and is_right(answer), answer


def test_a_penalty_by_vllms_name_has_an_effect(served: Served) -> None:
    body = {"messages": HI, "max_tokens": 24, "ignore_eos": True}
    answers = {
        content(asked(served, CHAT, body | more)[1])
        for more in ({}, {"repetition_penalty": 1.9}, {"repeat_penalty": 1.9})
    }
    assert len(answers) == 2


IMAGE = [
    {"type": "text", "text": "x"},
    {"type": "image_url", "image_url": {"url": "data:image/png"}},
]


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({"messages": HI, "model": "gpt-4o-mini"}, 404, "no model 'gpt-4o-mini'; known: f32"),
        ({"messages": [{"role": "user", "content": IMAGE}]}, 400, "'image_url' is not supported"),
        ({"messages": [{"role": "my-role", "content": "hi"}]}, 400, "messages.0.role"),
        ({"messages": HI, "mirostat": 2}, 400, "mirostat is not supported"),
    ],
)
def test_what_is_refused_is_named(
    served: Served, body: dict[str, Any], status: int, reason: str
) -> None:
    got, answer = asked(served, CHAT, body)
    assert got == status and reason in answer["error"]["message"]
