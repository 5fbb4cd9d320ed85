"""The shims on a served model: the official openai client, and plain HTTP for the others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from helpers.chat_chunks import events
from helpers.serving import Served, exported, running

HI = [{"role": "user", "content": "the lamp on the desk"}]
LIMIT = {"max_tokens": 12}
KEY = {"x-api-key": "open sesame"}
SCHEMA = {
    "type": "object",
    "properties": {"room": {"enum": ["hall", "den"]}},
    "required": ["room"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def served(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    (artifact,) = exported(tiny_base, tmp_path_factory.mktemp("other"), "f32")
    with running(artifact, slots=2, context=256, key="open sesame") as served:
        yield served
        assert sum(engine.counts.running for engine in served.engines) == 0


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="open sesame", max_retries=0)


@pytest.fixture(scope="module")
def answer(served: Served) -> dict[str, Any]:
    """Of chat completions to `HI`."""
    answer: dict[str, Any] = served.json("/v1/chat/completions", {"messages": HI, **LIMIT}, KEY)
    return answer


def test_a_response_is_the_answer_of_a_chat(client: openai.OpenAI, answer: dict[str, Any]) -> None:
    text = answer["choices"][0]["message"]["content"]
    whole = client.responses.create(model="f32", input=HI[0]["content"], max_output_tokens=12)
    assert whole.output_text == text and whole.usage
    assert whole.usage.input_tokens == answer["usage"]["prompt_tokens"]
    assert whole.status == "incomplete" and whole.incomplete_details
    stream = client.responses.create(
        model="f32", input=HI, max_output_tokens=12, stream=True,  # type: ignore[arg-type]
    )  # fmt: skip
    got = list(stream)
    final = got[-1].response  # type: ignore[union-attr]
    assert [got[0].type, got[-1].type] == ["response.created", "response.incomplete"]
    assert final.output_text == text
    assert final.usage and final.usage.input_tokens_details.cached_tokens > 0


def test_a_response_goes_on_with_an_earlier_one(client: openai.OpenAI, served: Served) -> None:
    first = client.responses.create(model="f32", input="lamp", max_output_tokens=4)
    more = {"model": "f32", "input": "and?", "max_output_tokens": 6}
    second = client.responses.create(previous_response_id=first.id, **more)  # type: ignore[call-overload]
    turns = [{"role": "user", "content": "lamp"}, {"role": "assistant", "content": first.output_text},
             {"role": "user", "content": "and?"}]  # fmt: skip
    chat = served.json("/v1/chat/completions", {"messages": turns, "max_tokens": 6}, KEY)
    assert second.output_text == chat["choices"][0]["message"]["content"]
    assert second.usage.input_tokens == chat["usage"]["prompt_tokens"]
    with pytest.raises(openai.BadRequestError, match="unknown, or forgotten"):
        client.responses.create(model="f32", input="x", previous_response_id="resp_none")


def test_an_earlier_response_is_read_and_deleted(client: openai.OpenAI, served: Served) -> None:
    made = client.responses.create(model="f32", input="lamp", max_output_tokens=4)
    assert client.responses.retrieve(made.id).to_dict() == made.to_dict()
    status, data, _ = served.ask("GET", f"/v1/responses/{made.id}?stream=true", headers=KEY)
    assert status == 400 and b"not supported" in data
    assert served.ask("GET", f"/v1/responses/{made.id}")[0] == 401
    client.responses.delete(made.id)
    for method in ("GET", "DELETE"):
        status, data, _ = served.ask(method, f"/v1/responses/{made.id}", headers=KEY)
        assert status == 404 and b"forgotten" in data
    unstored = client.responses.create(model="f32", input="x", max_output_tokens=1, store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(unstored.id)


def test_a_response_follows_a_schema(client: openai.OpenAI) -> None:
    form: Any = {
        "format": {"type": "json_schema", "name": "room", "schema": SCHEMA, "strict": True}
    }
    done = client.responses.create(model="f32", input="lamp", text=form, max_output_tokens=100)
    assert json.loads(done.output_text)["room"] in ("hall", "den") and done.status == "completed"


def test_a_message_is_the_answer_of_a_chat(served: Served, answer: dict[str, Any]) -> None:
    body = {"model": "f32", "messages": HI, **LIMIT}
    text = answer["choices"][0]["message"]["content"]
    whole = served.json("/v1/messages", body, KEY)
    assert whole["content"] == [{"type": "text", "text": text}]
    assert whole["stop_reason"] == "max_tokens"
    usage = whole["usage"]
    prompt_tokens = answer["usage"]["prompt_tokens"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == prompt_tokens
    status, data, headers = served.ask("POST", "/v1/messages", body | {"stream": True}, KEY)
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    got = events(data)
    deltas = [e["delta"]["text"] for e in got if e["type"] == "content_block_delta"]
    assert "".join(deltas) == text
    assert got[0]["message"]["usage"]["input_tokens"] > 0
    counted = served.json("/v1/messages/count_tokens", {"messages": HI}, KEY)
    assert counted == {"input_tokens": prompt_tokens}


def test_a_stop_sequence_is_named(served: Served, answer: dict[str, Any]) -> None:
    stop = answer["choices"][0]["message"]["content"][4:6]
    body = {"messages": HI, "stop_sequences": ["nowhere", stop], **LIMIT}
    for stream in (False, True):
        data = served.ask("POST", "/v1/messages", body | {"stream": stream}, KEY)[1]
        end = events(data)[-2]["delta"] if stream else json.loads(data)
        assert (end["stop_reason"], end["stop_sequence"]) == ("stop_sequence", stop)


def test_ollamas_chat_and_prompt(served: Served, answer: dict[str, Any]) -> None:
    text = answer["choices"][0]["message"]["content"]
    options = {"num_predict": 12}
    chat = {"model": "f32:latest", "messages": HI, "options": options}
    prompt = {"model": "f32", "prompt": HI[0]["content"], "options": options}
    for path, body in (("/api/chat", chat), ("/api/generate", prompt)):
        whole = served.json(path, body | {"stream": False}, KEY)
        status, data, headers = served.ask("POST", path, body, KEY)
        assert status == 200 and headers["content-type"] == "application/x-ndjson"
        *parts, last = map(json.loads, data.splitlines())
        texts = [part["message"]["content"] if "message" in part else part["response"]
                 for part in (whole, *parts)]  # fmt: skip
        assert texts[0] == "".join(texts[1:]) == text
        assert last["eval_count"] == whole["eval_count"] == 12
        assert whole["eval_duration"] > 0 and whole["done_reason"] == "length"
    raw = served.json("/api/generate", prompt | {"raw": True, "stream": False}, KEY)
    completion = {"prompt": HI[0]["content"], **LIMIT}
    plain = served.json("/v1/completions", completion, KEY)["choices"][0]["text"]
    assert raw["response"] == plain
    assert served.json("/api/generate", {"model": "f32"}, KEY)["done_reason"] == "load"


def test_ollama_follows_a_schema(served: Served) -> None:
    body = {"model": "f32", "messages": HI, "format": SCHEMA, "stream": False}
    content = served.json("/api/chat", body, KEY)["message"]["content"]
    assert json.loads(content)["room"] in ("hall", "den")


def test_ollamas_embeddings(served: Served) -> None:
    plain = served.json("/v1/embeddings", {"input": ["lamp", "desk"]}, KEY)
    vectors = [one["embedding"] for one in plain["data"]]
    made = served.json("/api/embed", {"model": "f32:latest", "input": ["lamp", "desk"]}, KEY)
    assert made["embeddings"] == vectors and made["model"] == "f32:latest"
    assert (
        made["prompt_eval_count"] == plain["usage"]["prompt_tokens"] and made["total_duration"] > 0
    )
    short = served.json("/api/embed", {"model": "f32", "input": "lamp", "dimensions": 8}, KEY)
    assert len(short["embeddings"][0]) == 8
    long = {"model": "f32", "input": "lamp " * 400}
    assert served.json("/api/embed", long, KEY)["prompt_eval_count"] == 256
    status, data, _ = served.ask("POST", "/api/embed", long | {"truncate": False}, KEY)
    assert status == 400 and "256 are possible" in json.loads(data)["error"]


def test_ollamas_facts(served: Served) -> None:
    (listed,) = json.loads(served.ask("GET", "/api/tags", headers=KEY)[1])["models"]
    assert listed["name"] == "f32" and listed["size"] > 0
    assert (
        listed["details"]["family"] == "llama" and listed["details"]["quantization_level"] == "F32"
    )
    shown = served.json("/api/show", {"model": "f32:latest"}, KEY)
    assert "completion" in shown["capabilities"]
    assert shown["model_info"]["general.architecture"] == "llama"
    assert shown["model_info"]["general.parameter_count"] > 0
    assert json.loads(served.ask("GET", "/api/version", headers=KEY)[1])["version"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/messages", {"messages": HI}, 400),
        ("/v1/messages", {"model": "none", "messages": HI, **LIMIT}, 404),
        ("/v1/messages", {"messages": [{"role": "user", "content": [{"type": "image"}]}], **LIMIT}, 400),
        ("/v1/messages", {"messages": HI, "mirostat": 2, **LIMIT}, 400),
        ("/v1/messages/batches", {}, 404),
        ("/api/chat", {"model": "none", "messages": HI}, 404),
        ("/api/chat", {"model": "f32", "messages": HI, "options": {"mirostat": 2}}, 400),
        ("/api/chat", {"model": "f32", "messages": [{"role": "user"}, 3]}, 400),
        ("/api/generate", {"model": "f32", "prompt": "a", "options": {"stop": 3}}, 400),
        ("/api/generate", {"model": "none"}, 404),
        ("/api/pull", {"model": "f32"}, 404),
        ("/api/show", {"model": "none"}, 404),
        ("/api/embed", {"model": "none", "input": "x"}, 404),
        ("/api/embed", {"model": "f32", "input": 3}, 400),
        ("/api/embed", {"model": "f32", "input": ["x"] * 2049}, 400),
        ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, 400),
        ("/v1/responses", {"input": "x", "model": "none"}, 404),
        ("/v1/responses", {"input": [{"role": "user"}]}, 400),
        ("/v1/responses", {"input": [{"role": ["user"], "content": {}}]}, 400),
        ("/v1/responses", {"input": "x " * 900}, 400),
    ],
)  # fmt: skip
def test_an_error_has_the_form_of_its_api(
    served: Served, path: str, body: dict[str, Any], status: int
) -> None:
    got, data, _ = served.ask("POST", path, body, KEY)
    assert got == status, data
    error = json.loads(data)["error"]
    if path.startswith("/api/"):
        assert isinstance(error, str)
    elif path.startswith("/v1/messages"):
        assert json.loads(data)["type"] == "error"
        kind = "not_found_error" if status == 404 else "invalid_request_error"
        assert error["type"] == kind and error["message"]
    else:
        assert error["message"] and error["code"]
