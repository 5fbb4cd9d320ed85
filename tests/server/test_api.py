"""The server as its clients see it: the official openai client, plain HTTP, lm-evaluation-harness."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from edgeft.records import Limits, Message
from edgeft.runtimes.protocol import Runtime, open_runtime
from edgeft.server import embeddings as embeddings_module
from edgeft.server.chat_page import chat_page
from edgeft.web.content_policy import content_policy
from helpers.serving import Served, exported, running


@pytest.fixture(scope="module")
def artifacts(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return exported(tiny_base, tmp_path_factory.mktemp("api"), "f32", "q8_0")


@pytest.fixture(scope="module")
def served(artifacts: list[Path]) -> Iterator[Served]:
    with running(*artifacts, slots=4, queue=4, context=256, key="open sesame") as served:
        yield served


KEY = {"authorization": "Bearer open sesame"}


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="open sesame", max_retries=0)


@pytest.fixture(scope="module")
def model(artifacts: list[Path]) -> Iterator[Runtime]:
    with open_runtime(artifacts[0], threads=1, context=256) as model:
        yield model


def hello(content: str = "the lamp on the desk") -> list[Any]:
    return [{"role": "user", "content": content}]


def free(served: Served, seconds: float = 10) -> float:
    """Seconds until no answer is running or waiting."""
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        if not any(e.counts.running or e.counts.waiting for e in served.engines):
            return time.perf_counter() - started
        time.sleep(0.005)
    raise AssertionError([engine.counts for engine in served.engines])


def test_models_and_the_choice_among_them(client: openai.OpenAI, served: Served) -> None:
    assert [model.id for model in client.models.list()] == ["f32", "q8_0"]
    assert client.models.retrieve("q8_0").owned_by == "edgeft"
    answers = {}
    for name in ("f32", "q8_0"):
        done = client.chat.completions.create(model=name, messages=hello(), max_tokens=60)
        assert done.model == name
        answers[name] = done.choices[0].message.content
    assert answers["f32"] != answers["q8_0"]
    plain = served.json("/v1/chat/completions", {"messages": hello(), "max_tokens": 60}, KEY)
    assert plain["choices"][0]["message"]["content"] == answers["f32"]
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-4o", messages=hello())


def test_a_chat_is_the_runtimes_answer(client: openai.OpenAI, model: Runtime) -> None:
    ids = model.encode(model.chat.render([Message("system", "be"), Message("user", "lamp")]))
    tokens = list(model.stream(ids, Limits(20)))
    messages: list[Any] = [{"role": "developer", "content": "be"}, *hello("lamp")]
    done = client.chat.completions.create(model="f32", messages=messages, max_tokens=20)
    assert done.choices[0].message.content == "".join(token.text for token in tokens)
    assert done.choices[0].finish_reason == ("length" if len(tokens) == 20 else "stop")
    assert done.usage and done.usage.prompt_tokens == len(ids)
    assert done.usage.completion_tokens == len(tokens)
    parts: Any = [{"type": "text", "text": "la"}, {"type": "text", "text": "mp"}]
    messages[-1] = {"role": "user", "content": parts}
    again = client.chat.completions.create(model="f32", messages=messages, max_tokens=20)
    assert again.choices[0].message.content == done.choices[0].message.content


def test_a_stream_is_the_whole_in_parts(client: openai.OpenAI) -> None:
    how: dict[str, Any] = {"model": "f32", "messages": hello(), "max_tokens": 30, "n": 2,
                           "temperature": 1.2, "seed": 5}  # fmt: skip
    whole = client.chat.completions.create(**how)
    texts, roles, ends, usages = ["", ""], ["", ""], ["", ""], []
    for chunk in client.chat.completions.create(
        **how, stream=True, stream_options={"include_usage": True}
    ):
        usages += [chunk.usage] if chunk.usage else []
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            roles[choice.index] += choice.delta.role or ""
            ends[choice.index] += choice.finish_reason or ""
    assert texts == [choice.message.content for choice in whole.choices]
    assert ends == [choice.finish_reason for choice in whole.choices]
    assert roles == ["assistant"] * 2 and texts[0] != texts[1]
    (use,) = usages
    assert whole.usage and use.completion_tokens == whole.usage.completion_tokens
    assert use.prompt_tokens == whole.usage.prompt_tokens


def test_log_probabilities_of_a_chat(client: openai.OpenAI, model: Runtime) -> None:
    done = client.chat.completions.create(
        model="f32", messages=hello(), max_tokens=6, logprobs=True, top_logprobs=3,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    choice = done.choices[0]
    assert choice.logprobs and choice.logprobs.content
    assert len(choice.logprobs.content) == 6
    ids = model.encode(model.chat.render([Message("user", hello()[0]["content"])]))
    row = model.logits(ids)[-1].astype(np.float64)
    expected = np.sort(row - row.max() - np.log(np.exp(row - row.max()).sum()))[::-1][:3]
    first = choice.logprobs.content[0]
    np.testing.assert_allclose([top.logprob for top in first.top_logprobs], expected, atol=0.01)
    assert first.logprob == first.top_logprobs[0].logprob
    said = b"".join(bytes(token.bytes or []) for token in choice.logprobs.content)
    assert said.decode("utf-8", "replace").startswith((choice.message.content or "")[:3])


def test_likelihood_as_the_evaluation_harness_asks_for_it(
    client: openai.OpenAI, model: Runtime, served: Served
) -> None:
    """EleutherAI/lm-evaluation-harness, openai_completions.py: lists of ids, echo, max_tokens 1."""
    prompts = [model.encode(text) for text in ("the lamp on the desk" * 4, "on the lamp", "é one")]
    for max_tokens in (0, 1):
        done = client.completions.create(
            model="f32", prompt=prompts, max_tokens=max_tokens, logprobs=1, echo=True, temperature=0,
            extra_body={"seed": 1234},
        )  # fmt: skip
        assert [choice.index for choice in done.choices] == [0, 1, 2]
        for ids, choice in zip(prompts, done.choices, strict=True):
            assert choice.logprobs and choice.logprobs.token_logprobs
            values = choice.logprobs.token_logprobs
            assert len(values) == len(ids) + max_tokens
            assert values[0] is None
            rows = model.logits(ids)[:-1].astype(np.float64)
            norm = np.log(np.exp(rows).sum(axis=1))
            expected = rows[np.arange(len(rows)), ids[1:]] - norm
            np.testing.assert_allclose(values[1 : len(ids)], expected, atol=0.02)
            assert choice.logprobs.top_logprobs
            for best, row, total in zip(
                choice.logprobs.top_logprobs[1 : len(ids)], rows, norm, strict=True
            ):
                assert abs(max(best.values()) - (row.max() - total)) < 0.02
    text = "the lamp on the desk"
    whole = served.json("/v1/completions", {"prompt": text, "echo": True, "max_tokens": 3}, KEY)
    assert whole["choices"][0]["text"].startswith(text) and not whole["choices"][0]["logprobs"]


def test_offsets_of_a_stream_go_on(client: openai.OpenAI) -> None:
    how: dict[str, Any] = {"model": "f32", "prompt": "the lamp", "max_tokens": 12, "logprobs": 0,
                           "extra_body": {"ignore_eos": True}}  # fmt: skip
    whole = client.completions.create(**how, stream=None).choices[0].logprobs  # type: ignore[call-overload]
    offsets: list[int] = []
    for chunk in client.completions.create(**how, stream=True):
        offsets += (chunk.choices[0].logprobs and chunk.choices[0].logprobs.text_offset) or []
    assert whole and offsets == whole.text_offset and len(set(offsets)) > 3


def test_stop_texts(client: openai.OpenAI) -> None:
    how: dict[str, Any] = {"model": "f32", "prompt": "the lamp", "max_tokens": 40,
                           "extra_body": {"ignore_eos": True}}  # fmt: skip
    text = client.completions.create(**how).choices[0].text
    stop = text[12:15]
    done = client.completions.create(**how, stop=[stop, "nowhere to be found"])
    assert done.choices[0].text == text[: text.find(stop)]
    assert done.choices[0].finish_reason == "stop"
    streamed = client.completions.create(**how, stop=stop, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == done.choices[0].text


def test_json_that_was_asked_for(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"room": {"enum": ["hall", "den"]}},
              "required": ["room"], "additionalProperties": False}  # fmt: skip
    done = client.chat.completions.create(
        model="f32", messages=hello(), max_tokens=100,
        response_format={"type": "json_schema",
                         "json_schema": {"name": "command", "schema": schema, "strict": True}},
    )  # fmt: skip
    assert json.loads(done.choices[0].message.content or "")["room"] in ("hall", "den")
    done = client.chat.completions.create(
        model="f32", messages=hello(), max_tokens=5, response_format={"type": "json_object"}
    )
    assert (done.choices[0].message.content or "").startswith("{")


def test_tokens_there_and_back(served: Served, model: Runtime) -> None:
    text = "the lamp é 😀<|im_end|>"
    made = served.json("/tokenize", {"content": text}, KEY)
    assert made["tokens"] == model.encode(text) and made["count"] == len(made["tokens"])
    assert served.json("/detokenize", {"tokens": made["tokens"]}, KEY)["content"] == text


def test_health_metrics_and_what_is_not_there(served: Served) -> None:
    status, data, _ = served.ask("GET", "/health")
    assert status == 200 and json.loads(data)["slots"] == 8 and json.loads(data)["memory"] > 1e7
    served.json("/v1/completions", {"prompt": "lamp", "max_tokens": 3, "ignore_eos": True}, KEY)
    status, data, headers = served.ask("GET", "/metrics", headers=KEY)
    assert status == 200 and headers["content-type"].startswith("text/plain; version=0.0.4")
    values = dict(
        line.rsplit(" ", 1) for line in data.decode().splitlines() if not line.startswith("#")
    )
    assert float(values['edgeft_new_tokens_total{model="f32"}']) >= 3
    assert float(values["edgeft_resident_bytes"]) > 1e7
    assert (
        values["edgeft_first_token_seconds_count"]
        == (values['edgeft_first_token_seconds_bucket{le="+Inf"}'])
    )
    for wrong in (
        {},
        {"input": ""},
        {"input": []},
        {"input": [10**9]},
        {"input": "x", "dimensions": 0},
        {"input": "x", "dimensions": 65},
        {"input": ["x"] * 2049},
        {"input": "x " * 2000},
        {"input": [["x"]]},
        {"input": "x", "encoding_format": "z"},
    ):
        status, data, _ = served.ask("POST", "/v1/embeddings", wrong, KEY)
        assert status == 400 and json.loads(data)["error"]["message"], wrong
    status, data, _ = served.ask("GET", "/v1/nowhere", headers=KEY)
    assert status == 404 and json.loads(data)["error"]["message"]


def test_a_stream_that_its_reader_leaves_frees_the_slot(served: Served) -> None:
    waits = []
    for _ in range(8):
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
        body = {"prompt": "the lamp", "max_tokens": 240, "stream": True, "ignore_eos": True}
        headers = {"content-type": "application/json", **KEY}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        assert answer.readline().startswith(b"data: ")
        assert sum(engine.counts.running for engine in served.engines) == 1
        answer.close()
        connection.close()
        waits.append(free(served))
    assert sorted(waits)[-2] < 0.5


def test_a_reader_of_a_whole_answer_who_leaves(served: Served) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    body = {"prompt": "the lamp", "max_tokens": 240, "ignore_eos": True, "n": 4}
    connection.request(
        "POST", "/v1/completions", json.dumps(body), {"content-type": "application/json", **KEY}
    )
    while not any(engine.counts.running for engine in served.engines):
        time.sleep(0.001)
    before = served.engines[0].counts.new_tokens
    connection.close()
    assert free(served) < 1
    assert served.engines[0].counts.new_tokens - before < 4 * 240
    with socket.create_connection(("127.0.0.1", served.port)) as half:
        half.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer open sesame\r\n"
            b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        )
    for _ in range(100):
        told = served.ask("GET", "/metrics", headers=KEY)[1].decode()
        if 'edgeft_http_requests_total{status="499"} 2' in told:
            break
        time.sleep(0.05)
    else:
        pytest.fail(told)
    assert 'status="5' not in told, "what a client does is no failure of the server"


def test_a_full_queue_is_429_with_a_time(served: Served) -> None:
    body = {"prompt": "the lamp", "max_tokens": 240, "ignore_eos": True, "stream": True, "n": 8}
    headers = {"content-type": "application/json", **KEY}
    first = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    first.request("POST", "/v1/completions", json.dumps(body), headers)
    answer = first.getresponse()
    answer.readline()
    status, data, heads = served.ask("POST", "/v1/completions", {"prompt": "lamp"}, KEY)
    assert status == 429 and json.loads(data)["error"]["code"] == "queue_full"
    assert 1 <= int(heads["retry-after"]) <= 60
    answer.close()
    first.close()
    free(served)
    served.json("/v1/completions", {"prompt": "lamp", "max_tokens": 2}, KEY)


def test_embeddings_have_a_bound_and_end_with_their_reader(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    (engine, *_) = served.engines
    asked: list[object] = []
    go = threading.Event()

    def embeddings(prompts: list[object]) -> Iterator[list[float]]:
        for ids in prompts:
            asked.append(ids)
            assert go.wait(30)
            yield [1.0]

    monkeypatch.setattr(engine, "embeddings", embeddings)
    monkeypatch.setattr(embeddings_module, "MAX_EMBEDDING_REQUESTS", 1)
    first = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    body = json.dumps({"input": [[1, 2, 3]] * 64})
    first.request("POST", "/v1/embeddings", body, {"content-type": "application/json", **KEY})
    while not asked:
        time.sleep(0.001)
    status, data, heads = served.ask("POST", "/v1/embeddings", {"input": "lamp"}, KEY)
    assert status == 429 and json.loads(data)["error"]["code"] == "queue_full"
    assert heads["retry-after"] == "1"
    first.close()
    time.sleep(0.3)  # for the server to hear of it
    go.set()
    while served.ask("POST", "/v1/embeddings", {"input": "lamp"}, KEY)[0] == 429:
        time.sleep(0.01)
    assert len(asked) < 64


def test_the_key_is_needed_and_never_shown(served: Served) -> None:
    body = {"prompt": "lamp", "max_tokens": 1}
    for headers in ({}, {"authorization": "Bearer open sesam"}, {"authorization": "open sesame"},
                    {"authorization": "Bearer open sesame "}, {"authorization": "Bearer é"}):  # fmt: skip
        status, data, _ = served.ask("POST", "/v1/completions", body, headers)
        if headers.get("authorization") == "Bearer open sesame ":
            continue  # HTTP itself drops blanks at the end of a value
        assert status == 401 and b"sesame" not in data
        assert json.loads(data)["error"]["type"] == "authentication_error"
    assert served.ask("POST", "/v1/completions", body, {"x-api-key": "open sesame"})[0] == 200
    assert served.ask("POST", "/v1/completions", body, {"x-api-key": "open"})[0] == 401


def test_the_page_is_served_under_its_own_policy(served: Served) -> None:
    status, data, headers = served.ask("GET", "/")
    assert status == 200 and data == chat_page()
    assert headers["content-security-policy"] == content_policy(data)


def test_a_page_of_an_allowed_origin_may_ask(artifacts: list[Path]) -> None:
    page = "https://example.org"
    with running(
        artifacts[0], cors=("https://Example.org",), allow_host=("Chat.Example",), context=128
    ) as served:
        assert served.ask("GET", "/health", headers={"host": "chat.example"})[0] == 200
        status, _, headers = served.ask(
            "OPTIONS", "/v1/completions",
            headers={"origin": page, "access-control-request-method": "POST"},
        )  # fmt: skip
        assert status == 204 and headers["access-control-allow-origin"] == page
        status, _, headers = served.ask(
            "POST", "/v1/completions", {"prompt": "lamp", "max_tokens": 1}, {"origin": page}
        )
        assert status == 200 and headers["access-control-allow-origin"] == page
        status, _, headers = served.ask(
            "GET", "/health", headers={"origin": "https://evil.example"}
        )
        assert status == 403 and "access-control-allow-origin" not in headers


AI_SDK = """
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { generateText, streamText } from 'ai'
const provider = createOpenAICompatible(
  { name: 'edgeft', baseURL: process.argv[2] + '/v1', apiKey: 'open sesame', includeUsage: true })
const ask = { model: provider('f32'), prompt: 'the lamp', maxOutputTokens: 12, temperature: 0 }
const whole = await generateText(ask)
const stream = streamText(ask)
let text = ''
for await (const part of stream.textStream) text += part
const usage = await stream.usage
console.log(JSON.stringify({ whole: whole.text, text, tokens: usage.outputTokens }))
"""


@pytest.mark.slow
def test_the_ai_sdk_of_npm(served: Served, tmp_path: Path) -> None:
    if not shutil.which("npm"):
        pytest.skip("there is no npm")
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "@ai-sdk/openai-compatible",
               "ai"]  # fmt: skip
    done = subprocess.run(install, cwd=tmp_path, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"npm finds no packages: {done.stderr[-200:]}")
    (tmp_path / "ask.mjs").write_text(AI_SDK)
    done = subprocess.run(
        ["node", "ask.mjs", served.url], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["whole"] == said["text"] and said["text"] and 0 < said["tokens"] <= 12


def test_embeddings_are_the_mean_of_transformers_last_states(
    client: openai.OpenAI, model: Runtime, tiny_base: Path
) -> None:
    import torch
    import transformers

    texts = ["the lamp on the desk", "a boat"]
    found = client.embeddings.create(model="f32", input=texts)
    assert [entry.index for entry in found.data] == [0, 1]
    live = transformers.AutoModel.from_pretrained(tiny_base, dtype=torch.float32)
    for text, entry in zip(texts, found.data, strict=True):
        ids = model.encode(text)
        with torch.no_grad():
            states = live(torch.tensor([ids])).last_hidden_state[0].mean(0).numpy()
        assert entry.embedding == pytest.approx(states / np.linalg.norm(states), abs=2e-3)
    assert found.usage.prompt_tokens == sum(len(model.encode(text)) for text in texts)
    plain = client.embeddings.create(model="f32", input=model.encode(texts[0]),  # type: ignore[arg-type]
                                     encoding_format="float")  # fmt: skip
    assert plain.data[0].embedding == pytest.approx(found.data[0].embedding, abs=1e-6)
    short = client.embeddings.create(model="f32", input=texts[0], dimensions=16).data[0].embedding
    first = np.array(plain.data[0].embedding[:16])
    assert short == pytest.approx(first / np.linalg.norm(first), abs=1e-6)
    many: list[Any] = [texts[1], model.encode(texts[0]), *["a"] * 98]
    mixed = client.embeddings.create(model="f32", input=many)
    assert len(mixed.data) == 100
    assert mixed.data[1].embedding == pytest.approx(plain.data[0].embedding, abs=1e-6)


def test_a_model_has_other_names(artifacts: list[Path]) -> None:
    alias = ("gpt-4o-mini=q8_0", f"*={artifacts[0]}")
    with running(*artifacts, context=128, alias=alias) as served:
        body = {"messages": hello(), "max_tokens": 1}
        for name, model in (("gpt-4o-mini", "q8_0"), ("anything", "f32"), ("q8_0", "q8_0")):
            assert served.json("/v1/chat/completions", body | {"model": name})["model"] == model
        listed = json.loads(served.ask("GET", "/v1/models")[1])["data"]
        assert [card["id"] for card in listed] == ["f32", "q8_0", "gpt-4o-mini"]
        assert all(abs(time.time() - card["created"]) < 3600 for card in listed)


def test_what_a_model_is(served: Served, model: Runtime) -> None:
    told = json.loads(served.ask("GET", "/props?model=q8_0", headers=KEY)[1])
    assert told["model_alias"] == "q8_0" and told["model_path"] == "q8_0.gguf"
    assert told["total_slots"] == 4 and told["default_generation_settings"]["n_ctx"] == 256
    assert told["chat_template"] == model.chat.source and told["eos_token"] == model.chat.eos_token
    assert served.ask("GET", "/props?model=none", headers=KEY)[0] == 404


def test_the_last_answer_goes_on(served: Served, model: Runtime) -> None:
    prompt = model.chat.render([Message("user", "the lamp on the desk")])
    how = {"max_tokens": 8, "ignore_eos": True}
    text = served.json("/v1/completions", how | {"prompt": prompt + "It is "}, KEY)["choices"][0]
    begun = how | {"messages": [*hello(), {"role": "assistant", "content": "It is "}]}
    going_on = {"continue_final_message": True, "add_generation_prompt": False}
    for more in ({}, going_on):
        choice = served.json("/v1/chat/completions", begun | more, KEY)["choices"][0]
        assert choice["message"]["content"] == text["text"]
    again = served.json("/v1/chat/completions", begun | {"add_generation_prompt": True}, KEY)
    assert again["choices"][0]["message"]["content"] != text["text"]
