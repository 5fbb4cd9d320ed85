"""What llama.cpp's own tests of its server ask for, asked of edgeft serve with a tiny model.

`llama_server_cases.toml` says for each of their cases which test here asks the same, or why there is none.
docs/results has it as a table, which `python tests/helpers/llama_server_cases.py` writes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from edgeft.runtimes.protocol import Runtime
from edgeft.server.requests import with_bos
from helpers import llama_server_cases
from helpers.chat_chunks import events
from helpers.paths import DATA
from helpers.serving import Served, exported, running

CASES = list(llama_server_cases.cases())
SOURCES = DATA / "server-tests"
"""llama.cpp's tests, which `make vocabularies` unpacks"""
CONTEXT = 640
BOOK = [{"role": "system", "content": "Book"}, {"role": "user", "content": "the best book"}]
LIFE = "I believe the meaning of life is"
CHAT, TEXT, VECTORS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
MESSAGES = "/v1/messages"
WEATHER = {"name": "get_weather", "description": "The weather of a place", "input_schema": {
    "type": "object", "properties": {"location": {"type": "string", "maxLength": 8}},
    "required": ["location"]}}  # fmt: skip


@pytest.mark.unit
def test_every_case_has_an_outcome_and_the_page_shows_it() -> None:
    assert {case.outcome for case in CASES} == set(llama_server_cases.OUTCOMES)
    for case in CASES:
        file, name = case.test
        if case.outcome == "passed":
            assert f"def {name}(" in file.read_text(encoding="utf-8"), case
    page = llama_server_cases.RESULT.read_text(encoding="utf-8")
    assert llama_server_cases.written(page) == page, "python tests/helpers/llama_server_cases.py"


@pytest.mark.slow
def test_no_case_of_the_pinned_version_is_missing() -> None:
    if not SOURCES.is_dir():
        pytest.skip("make vocabularies unpacks llama.cpp's tests")
    for path in sorted(SOURCES.glob("test_*.py")):
        names = set(re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))
        listed = {case.name for case in CASES if case.file == path.name}
        assert listed in (names, {llama_server_cases.ALL}), path.name


@pytest.fixture(scope="module")
def served(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    artifacts = exported(tiny_base, tmp_path_factory.mktemp("cases"), "f32")
    with running(*artifacts, slots=2, context=CONTEXT, alias=("fim=f32", "code=f32")) as served:
        yield served


@pytest.fixture(scope="module")
def runtime(served: Served) -> Runtime:
    return served.engines[0].runtime


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=served.url, api_key="none", max_retries=0)


def refused(served: Served, path: str, body: Any) -> dict[str, Any]:
    """The object of an error of the client."""
    status, data, _ = served.ask("POST", path, body)
    assert status == 400, data
    error: dict[str, Any] = json.loads(data)["error"]
    assert error["message"]
    return error


def streamed(served: Served, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks of a stream of OpenAI's API."""
    status, data, _ = served.ask("POST", path, body | {"stream": True})
    assert status == 200, data
    lines = data.decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def content(answer: dict[str, Any]) -> str:
    text: str = answer["choices"][0]["message"]["content"]
    return text


@pytest.mark.parametrize(
    "asked", ["the best book", [{"type": "text", "text": "the "}, {"type": "text", "text": "best book"}]]
)  # fmt: skip
def test_a_chat_is_answered(served: Served, asked: Any) -> None:
    messages = [BOOK[0], {"role": "user", "content": asked}]
    answer = served.json(CHAT, {"messages": messages, "max_tokens": 8, "ignore_eos": True})
    assert answer["id"].startswith("chatcmpl-") and answer["system_fingerprint"]
    whole = served.json(CHAT, {"messages": BOOK, "max_tokens": 8, "ignore_eos": True})
    assert content(answer) == content(whole)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["choices"][0]["message"]["role"] == "assistant"
    counted = served.json(f"{CHAT}/input_tokens", {"messages": BOOK})
    assert answer["usage"]["prompt_tokens"] == counted["input_tokens"] > 5
    assert answer["usage"]["completion_tokens"] == 8


def test_a_chat_is_streamed(served: Served) -> None:
    body = {"messages": BOOK, "max_tokens": 8, "ignore_eos": True}
    chunks = streamed(served, CHAT, body | {"stream_options": {"include_usage": True}})
    choices = [chunk["choices"][0] for chunk in chunks[:-1]]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert all("role" not in choice["delta"] for choice in choices[1:])
    assert (
        len({(chunk["id"], chunk["model"], chunk["system_fingerprint"]) for chunk in chunks}) == 1
    )
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + [
        "length"
    ]
    text = "".join(choice["delta"].get("content", "") for choice in choices)
    assert text == content(served.json(CHAT, body))
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 8


def test_tokens_of_the_prompt_that_are_in_the_cache_are_counted(served: Served) -> None:
    cached = []
    for end in ("1 2 3 4 5 6", "1 2 3 4 5 6", "1 2 3 9 9 9"):
        messages = [{"role": "user", "content": f"{'zebra ' * 8}{end}"}]
        usage = served.json(CHAT, {"messages": messages, "max_tokens": 2})["usage"]
        cached.append(usage["prompt_tokens_details"]["cached_tokens"])
        assert cached[-1] < usage["prompt_tokens"]
    assert cached[1] > cached[0] and cached[1] >= cached[2] > 0


def test_the_prompt_of_a_chat_is_shown(served: Served, runtime: Runtime) -> None:
    prompt = served.json("/apply-template", {"messages": BOOK})["prompt"]
    ids = served.json("/tokenize", {"content": prompt})["tokens"]
    answer = served.json(CHAT, {"messages": BOOK, "max_tokens": 1})
    assert answer["usage"]["prompt_tokens"] == len(ids)
    without = served.json("/apply-template", {"messages": BOOK, "add_generation_prompt": False})
    assert prompt.startswith(without["prompt"]) and len(prompt) > len(without["prompt"])
    assert without["prompt"].endswith("the best book<|im_end|>\n")


@pytest.mark.parametrize(
    "prefill", ["Whatever", [{"type": "text", "text": "What"}, {"type": "text", "text": "ever"}]]
)
def test_a_chat_goes_on_with_the_last_answer(served: Served, prefill: Any) -> None:
    body = {"messages": [*BOOK, {"role": "assistant", "content": prefill}]}
    prompt = served.json("/apply-template", {"messages": BOOK})["prompt"]
    assert served.json("/apply-template", body)["prompt"] == f"{prompt}Whatever"
    named = body | {"add_generation_prompt": False, "continue_final_message": True}
    assert served.json("/apply-template", named)["prompt"] == f"{prompt}Whatever"
    both = body | {"add_generation_prompt": True, "continue_final_message": True}
    assert "exclude" in refused(served, CHAT, both)["message"]


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ({"response_format": {"type": "json_object", "schema": {"const": "42"}}}, '"42"'),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"const": "fooo"}}}}, '"fooo"'),
        ({"json_schema": {"const": "42"}}, '"42"'),
        ({"grammar": 'root ::= "a"{5,5}'}, "aaaaa"),
    ],
)  # fmt: skip
def test_an_answer_follows_a_rule(served: Served, rule: dict[str, Any], text: str) -> None:
    assert content(served.json(CHAT, {"messages": BOOK, "max_tokens": 20, **rule})) == text


def test_an_answer_is_json(served: Served) -> None:
    rule = {"response_format": {"type": "json_object"}}
    assert content(served.json(CHAT, {"messages": BOOK, "max_tokens": 6, **rule}))[0] == "{"
    integers = {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2}
    rule = {"response_format": {"type": "json_object", "schema": integers}}
    text = content(served.json(CHAT, {"messages": BOOK, "max_tokens": 60, **rule}))
    assert text.startswith("[") and text.strip("[]-0123456789, ") == ""


@pytest.mark.parametrize(
    "rule",
    [
        {"response_format": {"type": "sound"}},
        {"response_format": {"type": "json_object", "schema": 123}},
        {"response_format": {"type": "json_object", "schema": {"type": 123}}},
        {"response_format": {"type": "json_object", "schema": {"type": "hiccup"}}},
        {"grammar": "root ::= this is (not valid GBNF"},
    ],
)
def test_a_wrong_rule_is_refused(served: Served, rule: dict[str, Any]) -> None:
    refused(served, CHAT, {"messages": BOOK, "max_tokens": 4, **rule})


@pytest.mark.parametrize(
    "messages",
    [None, "string", [123], [{}], [{"role": 123}], [{"role": "system", "content": 123}],
     [{"role": "system", "content": "test"}, {}]],
)  # fmt: skip
def test_wrong_messages_are_refused(served: Served, messages: Any) -> None:
    refused(served, CHAT, {"messages": messages})


def test_a_second_answer_in_a_row_is_continued(served: Served) -> None:
    said = {"role": "assistant", "content": "test"}
    prompt = served.json("/apply-template", {"messages": [*BOOK, said, said]})["prompt"]
    assert prompt.count("<|im_start|>assistant\ntest") == 2 and prompt.endswith("test")


def test_the_times_of_an_answer(served: Served) -> None:
    for tokens in (1, 8):
        body = {"prompt": LIFE, "max_tokens": tokens, "ignore_eos": True}
        times = served.json(TEXT, body)["timings"]
        assert times["predicted_n"] == tokens and min(times.values()) >= 0
        rate = (tokens - 1) / times["predicted_ms"] * 1000 if tokens > 1 else 0
        assert times["predicted_per_second"] == pytest.approx(rate, rel=0.01)
        assert times["prompt_ms"] > 0 and times["prompt_n"] > 0
    chunks = streamed(served, CHAT, {
        "messages": BOOK, "max_tokens": 8, "timings_per_token": True, "ignore_eos": True,
        "stream_options": {"include_usage": True},
    })  # fmt: skip
    assert "timings" not in chunks[0]
    assert all(chunk["timings"]["prompt_per_second"] > 0 for chunk in chunks[1:])
    assert chunks[-1]["timings"]["predicted_n"] == 8


def test_log_probabilities_are_those_of_the_text(client: openai.OpenAI) -> None:
    how: Any = {
        "model": "f32", "messages": BOOK, "max_tokens": 5, "temperature": 0, "logprobs": True,
        "top_logprobs": 10, "extra_body": {"grammar": "root ::= [a-z]{200}"},
    }  # fmt: skip
    whole = client.chat.completions.create(**how).choices[0]
    assert whole.logprobs and whole.logprobs.content
    assert "".join(token.token for token in whole.logprobs.content) == whole.message.content
    assert all(token.logprob <= 0 and token.bytes for token in whole.logprobs.content)
    assert all(len(token.top_logprobs) == 10 for token in whole.logprobs.content)
    text = said = ""
    for chunk in client.chat.completions.create(**how, stream=True):
        text += chunk.choices[0].delta.content or ""
        tokens = chunk.choices[0].logprobs and chunk.choices[0].logprobs.content
        said += "".join(token.token for token in tokens or [])
    assert text == said == whole.message.content


def test_a_bias_keeps_tokens_away(served: Served) -> None:
    ids = served.json(TEXT, {"prompt": LIFE, "max_tokens": 8, "logprobs": 0, "ignore_eos": True})
    text = ids["choices"][0]["logprobs"]["tokens"]
    banned = served.json("/tokenize", {"content": "".join(text)})["tokens"]
    for body in ({"prompt": LIFE}, {"messages": BOOK}):
        bias = {str(token): -100 for token in banned}
        asked = body | {"max_tokens": 16, "ignore_eos": True, "logit_bias": bias}
        answer = served.json(CHAT if "messages" in body else TEXT, asked)["choices"][0]
        said = answer["message"]["content"] if "messages" in body else answer["text"]
        assert not set(served.json("/tokenize", {"content": said})["tokens"]) & set(banned)
    for other in ([[5, -100]], {"the": -100}):
        refused(served, TEXT, {"prompt": LIFE, "logit_bias": other})


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_beyond_the_context_is_refused_with_both_numbers(
    served: Served, stream: bool
) -> None:
    for path, body in ((CHAT, {"messages": BOOK * 100}), (TEXT, {"prompt": LIFE * 100})):
        error = refused(served, path, body | {"stream": stream})
        assert error["code"] == "context_length_exceeded"
        assert error["n_prompt_tokens"] > error["n_ctx"] == CONTEXT
    refused(served, VECTORS, {"input": LIFE * 100})


@pytest.mark.parametrize("field", [{"n_probs": 5}, {"post_sampling_probs": True}])
def test_what_only_llama_server_gives_is_refused(served: Served, field: dict[str, Any]) -> None:
    (name,) = field
    for path, body in ((CHAT, {"messages": BOOK}), (TEXT, {"prompt": LIFE})):
        assert name in refused(served, path, body | field)["message"]
        assert served.json(path, body | {"max_tokens": 1, name: 0 if name == "n_probs" else False})


def test_the_progress_of_reading_a_prompt(served: Served) -> None:
    body = {"messages": [{"role": "user", "content": "This is a progress test. " * 20}],
            "max_tokens": 4, "return_progress": True, "timings_per_token": True}  # fmt: skip
    for path, asked in ((CHAT, body), (TEXT, body | {"prompt": "Another test. " * 30})):
        cached = []
        for _ in range(2):
            chunks = streamed(served, path, asked)
            reports = [one["prompt_progress"] for one in chunks if "prompt_progress" in one]
            assert reports[0]["cache"] == reports[0]["processed"]
            cached.append(reports[0]["cache"])
            read = [one["processed"] for one in reports]
            assert read == sorted(set(read)) and read[-1] == reports[-1]["total"] > 128
            assert len({(one["total"], one["cache"]) for one in reports}) == 1
            first = chunks.index(next(one for one in chunks if "prompt_progress" in one))
            assert min(chunks[first]["timings"].values()) >= 0
            assert "prompt_progress" not in chunks[-1], "the answer comes later"
            assert len(reports) >= 2
        assert cached[1] > cached[0] + 64
    whole = served.json(CHAT, body)
    assert "prompt_progress" not in whole
    text = "".join(
        c["choices"][0]["delta"].get("content", "") for c in streamed(served, CHAT, body)
    )
    assert text == content(whole)
    for path, shim in (
        ("/v1/responses", {"input": "x"}),
        (MESSAGES, {"messages": BOOK[1:], "max_tokens": 1}),
    ):
        assert (
            "return_progress" in refused(served, path, shim | {"return_progress": True})["message"]
        )


def test_several_answers_to_one_chat(served: Served) -> None:
    for _ in range(2):
        body = {"messages": BOOK, "max_tokens": 4, "n": 2, "id_slot": 0, "ignore_eos": True}
        choices = served.json(CHAT, body)["choices"]
        assert [choice["finish_reason"] for choice in choices] == ["length"] * 2
        assert [choice["message"]["role"] for choice in choices] == ["assistant"] * 2


def test_a_text_is_completed_the_same_whole_and_streamed(served: Served) -> None:
    body = {"prompt": LIFE, "n_predict": 8, "ignore_eos": True}
    whole = served.json(TEXT, body)
    assert whole["timings"]["predicted_n"] == 8 and whole["id"].startswith("cmpl-")
    assert whole["choices"][0]["finish_reason"] == "length"
    chunks = streamed(served, TEXT, body)
    assert "".join(c["choices"][0]["text"] for c in chunks) == whole["choices"][0]["text"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_a_seed_decides_an_answer(served: Served) -> None:
    def text(seed: int) -> str:
        body = {"prompt": LIFE, "max_tokens": 12, "seed": seed, "temperature": 1.0}
        answer: str = served.json(TEXT, body | {"ignore_eos": True})["choices"][0]["text"]
        return answer

    assert text(42) == text(42)
    assert len({text(seed) for seed in range(4)}) == 4


def test_prompts_may_be_tokens_texts_and_both(served: Served) -> None:
    ids = served.json("/tokenize", {"content": LIFE, "add_special": True})["tokens"]
    for prompt in (ids, [ids, ids], [ids, LIFE]):
        answer = served.json(TEXT, {"prompt": prompt, "max_tokens": 4, "ignore_eos": True})
        texts = [choice["text"] for choice in answer["choices"]]
        assert len(texts) == (1 if prompt is ids else 2) and len(set(texts)) == 1


@pytest.mark.parametrize(
    "prompt", [{"prompt_string": LIFE}, [1, 2, LIFE, 3], [[1, 2], {"prompt_string": LIFE}]]
)
def test_prompts_of_llama_servers_own_forms_are_refused(served: Served, prompt: Any) -> None:
    refused(served, TEXT, {"prompt": prompt})
    refused(served, VECTORS, {"input": prompt})


@pytest.mark.parametrize("count", [1, 2, 5])
def test_requests_share_the_slots(served: Served, count: int) -> None:
    def text(number: int) -> str:
        body = {"prompt": f"{number} {LIFE}", "max_tokens": 12, "ignore_eos": True}
        answer: str = served.json(TEXT, body)["choices"][0]["text"]
        return answer

    alone = [text(number) for number in range(count)]
    with ThreadPoolExecutor(count) as clients:
        assert list(clients.map(text, range(count))) == alone


def test_an_answer_without_a_limit_ends_with_the_context(served: Served) -> None:
    body = {"prompt": "Hi", "max_tokens": -1, "ignore_eos": True}
    answer = served.json(TEXT, body)
    assert answer["choices"][0]["finish_reason"] == "length"
    usage = answer["usage"]
    assert usage["prompt_tokens"] + usage["completion_tokens"] == CONTEXT + 1
    last = streamed(served, TEXT, body | {"max_tokens": 400})[-1]["choices"][0]
    assert last["finish_reason"] == "length"


def test_prompts_of_changing_lengths_are_read_once(served: Served) -> None:
    for length in (12, 10, 13, 10, 11, 12):
        answer = served.json(TEXT, {"prompt": " Hello" * length, "max_tokens": 3})
        times, usage = answer["timings"], answer["usage"]
        assert times["prompt_n"] + times["cache_n"] == usage["prompt_tokens"]
        assert times["cache_n"] == usage["prompt_tokens_details"]["cached_tokens"]


def test_tokens_of_a_text(served: Served, runtime: Runtime) -> None:
    text = "a string with unicode 媽 and emoji 🤗"
    ids = served.json("/tokenize", {"content": text})["tokens"]
    assert served.json("/detokenize", {"tokens": ids})["content"] == text
    marked = served.json("/tokenize", {"content": text, "add_special": True})["tokens"]
    assert marked == with_bos(ids, runtime)
    tokens = served.json("/tokenize", {"content": text, "with_pieces": True})["tokens"]
    assert [token["id"] for token in tokens] == ids
    pieces = [token["piece"] for token in tokens]
    data = b"".join(p.encode() if isinstance(p, str) else bytes(p) for p in pieces)
    assert data.decode() == text and any(isinstance(piece, list) for piece in pieces)
    assert "parse_special" in refused(
        served, "/tokenize", {"content": text, "parse_special": False})["message"]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "count"),
    [("string", 1), ([12, 34, 56], 1), (["string1", "string2"], 2), (["string1", [12, 34]], 2),
     ([[12, 34], [12, 34]], 2), ([LIFE] * 5, 5)],
)  # fmt: skip
def test_vectors_of_texts(served: Served, asked: Any, count: int) -> None:
    answer = served.json(VECTORS, {"input": asked})
    vectors = [one["embedding"] for one in answer["data"]]
    assert len(vectors) == count
    assert all(sum(x * x for x in vector) == pytest.approx(1, abs=1e-3) for vector in vectors)
    if count == 5:
        assert all(vector == vectors[0] for vector in vectors)
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0


@pytest.mark.parametrize(
    "asked", ["", [], [12, "string", 34], {"content": "string"}, {"content": [{"type": "unknown"}]}]
)
def test_wrong_texts_have_no_vector(served: Served, asked: Any) -> None:
    refused(served, VECTORS, {"input": asked})


def test_vectors_in_base64(client: openai.OpenAI, served: Served) -> None:
    plain = served.json(VECTORS, {"input": LIFE})
    v1 = client.with_options(base_url=f"{served.url}/v1")
    for form in ("base64", "float"):
        made = v1.embeddings.create(model="f32", input=LIFE, encoding_format=form)  # type: ignore[arg-type]
        vector: Any = made.data[0].embedding
        if form == "base64":
            import base64
            import struct

            data = base64.b64decode(vector)
            vector = struct.unpack(f"{len(data) // 4}f", data)
        assert list(vector) == pytest.approx(plain["data"][0]["embedding"], abs=1e-6)


def test_a_base_url_without_v1(client: openai.OpenAI, served: Served) -> None:
    assert [model.id for model in client.models.list()] == ["f32", "fim", "code"]
    done = client.chat.completions.create(model="code", messages=BOOK, max_tokens=4)  # type: ignore[arg-type]
    same = served.json(CHAT, {"messages": BOOK, "max_tokens": 4})
    assert done.choices[0].message.content == content(same)
    answer = client.responses.create(model="f32", input=BOOK, max_output_tokens=4)  # type: ignore[arg-type]
    assert answer.output_text == content(same)
    counted = served.json("/v1/responses/input_tokens", {"input": BOOK})
    assert counted == {"object": "response.input_tokens", "input_tokens": answer.usage.input_tokens}  # type: ignore[union-attr]


def test_facts_of_the_server(served: Served) -> None:
    assert served.ask("GET", "/health")[0] == 200
    facts = json.loads(served.ask("GET", "/props")[1])
    assert facts["model_path"] == "f32.gguf" and facts["total_slots"] == 2
    settings = facts["default_generation_settings"]
    assert settings["n_ctx"] == CONTEXT and settings["params"]["temperature"] == 0
    status, page, _ = served.ask("GET", "/")
    assert status == 200 and page.lower().startswith(b"<!doctype html>")


def test_counts_of_the_server(served: Served) -> None:
    def counts() -> dict[str, float]:
        lines = served.ask("GET", "/metrics")[1].decode().splitlines()
        assert {line.split()[2] for line in lines if line.startswith("# TYPE")} == {
            line.split()[2] for line in lines if line.startswith("# HELP")
        }
        values = (line.rsplit(" ", 1) for line in lines if "{model=" in line)
        return {name.partition("{")[0]: float(value) for name, value in values}

    before, read, cached = counts(), 0, 0
    for tokens in (1, 4, 16):
        body = {"prompt": f"counted {LIFE}", "max_tokens": tokens, "ignore_eos": True}
        times = served.json(TEXT, body)["timings"]
        read, cached = read + times["prompt_n"], cached + times["cache_n"]
    after = counts()
    assert after["edgeft_new_tokens_total"] - before["edgeft_new_tokens_total"] == 21
    assert after["edgeft_reused_tokens_total"] - before["edgeft_reused_tokens_total"] == cached > 0
    prompts = after["edgeft_prompt_tokens_total"] - before["edgeft_prompt_tokens_total"]
    assert prompts == read + cached
    assert after["edgeft_running"] == 0


def message(served: Served, messages: Any = None, **more: Any) -> dict[str, Any]:
    """Anthropic's answer."""
    asked = {"model": "f32", "max_tokens": 8, "messages": messages or BOOK[1:]}
    answer: dict[str, Any] = served.json(MESSAGES, asked | more)
    assert answer["type"] == "message" and answer["role"] == "assistant"
    assert answer["content"] and "timings" not in answer
    return answer


@pytest.mark.parametrize(
    "more",
    [{}, {"system": "You are helpful."}, {"stop_sequences": ["\n", "END"]}, {"temperature": 0.5},
     {"top_p": 0.9}, {"top_k": 40}, {"thinking": {"type": "enabled", "budget_tokens": 1024}},
     {"metadata": {"user_id": "test"}}],
    ids=lambda more: next(iter(more), "plain"),
)  # fmt: skip
def test_anthropics_messages_are_answered(served: Served, more: dict[str, Any]) -> None:
    answer = message(served, ignore_eos=True, **more)
    assert answer["content"][0]["type"] == "text"
    assert answer["stop_reason"] in ("max_tokens", "stop_sequence")
    usage = answer["usage"]
    assert usage["output_tokens"] > 0
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] > 5


def test_anthropics_contents(served: Served) -> None:
    parts = [{"type": "text", "text": "the "}, {"type": "text", "text": "best book"}]
    assert (
        message(served, [{"role": "user", "content": parts}])["content"]
        == message(served)["content"]
    )
    turns = [*BOOK[1:], {"role": "assistant", "content": "Hi!"}, *BOOK[1:]]
    assert message(served, turns)
    for error in ({}, {"is_error": True}):
        result = {"type": "tool_result", "tool_use_id": "t1", "content": "sunny, 25°C", **error}
        use = {"type": "tool_use", "id": "t1", "name": "get_weather", "input": {"location": "Oslo"}}
        for more in ([], [{"type": "text", "text": "Here it is:"}]):
            turns = [*BOOK[1:], {"role": "assistant", "content": [use]},
                     {"role": "user", "content": [*more, result]}]  # fmt: skip
            assert message(served, turns)["content"][0]["type"] == "text"
    image = {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": "AA=="},
    }
    wrong = {"model": "f32", "max_tokens": 8, "messages": [{"role": "user", "content": [image]}]}
    assert "'image' is not supported" in refused(served, MESSAGES, wrong)["message"]
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [image]}
    wrong["messages"] = [turns[0], turns[1], {"role": "user", "content": [result]}]
    assert "'image' is not supported" in refused(served, MESSAGES, wrong)["message"]
    for messages in ({}, {"messages": []}):
        refused(served, MESSAGES, {"model": "f32", "max_tokens": 8, **messages})


def test_anthropics_stream(served: Served) -> None:
    body = {"model": "f32", "max_tokens": 8, "messages": BOOK[1:], "stream": True}
    status, data, _ = served.ask("POST", MESSAGES, body | {"ignore_eos": True})
    sent = events(data)
    assert status == 200 and "timings" not in str(sent)
    start = sent[0]["message"]
    assert start["content"] == [] and start["usage"]["input_tokens"] >= 0
    middle = [one["type"] for one in sent[2:-3]]
    assert middle and set(middle) == {"content_block_delta"}
    others = [one["type"] for one in (*sent[:2], *sent[-3:])]
    assert others == ["message_start", "content_block_start", "content_block_stop",
                      "message_delta", "message_stop"]  # fmt: skip
    assert (
        sent[-2]["usage"]["output_tokens"] == 8 and sent[-2]["delta"]["stop_reason"] == "max_tokens"
    )


def test_anthropics_tools(served: Served) -> None:
    tools: Any = {"tools": [WEATHER], "max_tokens": 100}
    answer = message(
        served, **tools, tool_choice={"type": "any", "disable_parallel_tool_use": True}
    )
    (block,) = answer["content"]
    assert block["type"] == "tool_use" and block["name"] == "get_weather" and block["id"]
    assert set(block["input"]) == {"location"} and answer["stop_reason"] == "tool_use"
    assert message(served, **tools)["content"]
    body = {"model": "f32", "messages": BOOK[1:], "stream": True, "tool_choice": {"type": "any"}}
    sent = events(served.ask("POST", MESSAGES, body | tools)[1])
    starts = [one for one in sent if one["type"] == "content_block_start"]
    stops = [one["index"] for one in sent if one["type"] == "content_block_stop"]
    assert [one["index"] for one in starts] == stops == list(range(len(starts)))
    assert starts[0]["content_block"]["name"] == "get_weather"


def test_anthropics_tokens_are_counted(served: Served) -> None:
    plain = {"model": "f32", "messages": BOOK[1:]}
    few = served.json(f"{MESSAGES}/count_tokens", plain)
    more = served.json(f"{MESSAGES}/count_tokens", plain | {"system": "You are helpful."})
    assert set(few) == {"input_tokens"} and 0 < few["input_tokens"] < more["input_tokens"]


@pytest.mark.parametrize("choice", [None, "auto", "none"])
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_without_calls(served: Served, choice: str | None, stream: bool) -> None:
    tool = {
        "type": "function",
        "function": {
            "name": "test",
            "parameters": {"type": "object", "properties": {"success": {"const": True}}},
        },
    }
    body = {"messages": BOOK, "max_tokens": 8, "tool_choice": choice,
            "tools": [tool] if choice else None}  # fmt: skip
    if stream:
        chunks = streamed(served, CHAT, body)
        assert all("tool_calls" not in chunk["choices"][0]["delta"] for chunk in chunks)
    else:
        assert "tool_calls" not in served.json(CHAT, body)["choices"][0]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_required_call(served: Served, stream: bool) -> None:
    parameters = {
        "type": "object", "properties": {"success": {"type": "boolean", "const": True}},
        "required": ["success"], "additionalProperties": False,
    }  # fmt: skip
    body = {"messages": BOOK, "tool_choice": "required", "parallel_tool_calls": False,
            "max_tokens": 60, "tools": [{"type": "function", "function": {
                "name": "test", "description": "", "parameters": parameters}}]}  # fmt: skip
    if stream:
        deltas = [chunk["choices"][0]["delta"] for chunk in streamed(served, CHAT, body)]
        parts = [call for delta in deltas for call in delta.get("tool_calls", [])]
        name, text = (
            parts[0]["function"]["name"],
            "".join(p["function"]["arguments"] for p in parts),
        )
    else:
        said = served.json(CHAT, body)["choices"][0]["message"]
        (call,) = said["tool_calls"]
        assert said["content"] is None
        name, text = call["function"]["name"], call["function"]["arguments"]
    assert name == "test" and json.loads(text) == {"success": True}
