"""Requests that are wrong in every way: all are 4xx, and the server answers the next one."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from edgeft.server import requests
from edgeft.web import connections
from helpers.serving import Served, exported, running

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def served(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    (artifact,) = exported(tiny_base, tmp_path_factory.mktemp("abuse"), "f32")
    with running(artifact, slots=2, queue=4, context=128) as served:
        yield served
        assert served.json(TEXT, {"prompt": "lamp", "max_tokens": 2})["choices"]
        assert sum(engine.counts.running for engine in served.engines) == 0


def chat(**more: Any) -> tuple[str, Any]:
    return CHAT, {"messages": HI, "max_tokens": 2, **more}


def text(**more: Any) -> tuple[str, Any]:
    return TEXT, {"prompt": "hi", "max_tokens": 2, **more}


DEEP = b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}"

BODIES: list[tuple[str, Any]] = [
    chat(max_tokens=-2), chat(max_tokens=0), chat(max_tokens=10**30), chat(max_tokens=-1.5),
    chat(max_tokens=1.5), chat(max_tokens="2"), chat(max_tokens=True), chat(max_tokens=[2]),
    chat(temperature=-1), chat(temperature=1e9), chat(temperature="hot"), chat(temperature=[0]),
    chat(top_p=2), chat(top_p=-0.5), chat(top_k=-5), chat(top_k=1e99),
    chat(min_p=-1), chat(min_p=1.5), chat(frequency_penalty=100), chat(presence_penalty=-3),
    chat(repeat_penalty=0), chat(repeat_penalty=-1), chat(seed="x"), chat(seed=2**70),
    chat(n=0), chat(n=-1), chat(n=65), chat(n=10**9), chat(stream="yes"), chat(stream=3),
    chat(stop=[3]), chat(stop=["x"] * 100), chat(stop="y" * 10_000), chat(stop=3),
    chat(logprobs=3), chat(top_logprobs=1000), chat(top_logprobs=-1), chat(logit_bias={"x": 1}),
    chat(logit_bias={"-1": 1}), chat(logit_bias={"99999999999999999999": 1}),
    chat(logit_bias={"0" * 5000: 1}), chat(logit_bias={"0000000000009999999999": 1}),
    chat(logit_bias={"1": 1e9}), chat(model="../../etc/passwd"), chat(model=3), chat(model="x" * 5000),
    chat(tools=[{"type": "function", "function": {}}]), chat(functions=[{"name": "a b"}]), chat(tools=3),
    chat(tool_choice="required"), chat(tool_choice="some"), chat(tools=[{"type": "web_search"}]),
    chat(grammar='root ::= "yes'), chat(grammar="root ::= nowhere"), chat(grammar="(" * 4000),
    chat(grammar="x" * 5000), chat(grammar='root ::= "a" ' * 400), chat(grammar=3),
    chat(grammar="root ::= root"), chat(guided_grammar='%llguidance {}\nstart: "a"'),
    chat(guided_choice=[]), chat(guided_choice=["yes", ""]), chat(guided_choice=["x" * 20_000]),
    chat(guided_json={"type": 3}), chat(guided_json="{"), chat(guided_json="[" * 5000), chat(guided_json="1"),
    chat(guided_regex="("), chat(guided_regex="(?=a)b"), chat(guided_regex=r"(a)\1"),
    chat(guided_regex="a" * 20_000), chat(guided_regex=["a"]), chat(json_schema={"type": 3}),
    chat(json_schema="x"), chat(structured_outputs={"json": "{"}), chat(structured_outputs={"regex": 3}),
    chat(structured_outputs={"structural_tag": "x"}), chat(min_tokens=3),
    chat(guided_regex="a", guided_choice=["a"]), chat(grammar='root ::= "a"', json_schema={}),
    chat(mirostat=2), chat(typical_p=0.5), chat(stop_token_ids=[3]), chat(lora=[{"id": 0}]),
    chat(continue_final_message=True), chat(enable_thinking=False), chat(chat_template_kwargs=3),
    chat(chat_template_kwargs={"no_such_variable": 1}), chat(chat_template_kwargs={"messages": []}),
    chat(response_format={"type": "json_object", "schema": {"type": 3}}),
    chat(response_format={"type": "xml"}), chat(response_format={"type": "json_schema"}),
    chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 3}}}),
    chat(response_format={"type": "json_schema", "json_schema": {"schema": {"$ref": "http://[::1]"}}}),
    chat(response_format={"type": "json_schema", "json_schema": {
        "schema": {"type": "string", "maxLength": 10**12}}}),
    chat(response_format={"type": "json_schema", "json_schema": {"schema": {
        "$defs": {"t": {"$ref": "#/$defs/t"}}, "$ref": "#/$defs/t"}}}),
    chat(response_format={"type": "json_schema", "json_schema": {"schema": {"enum": ["x" * 20_000]}}}),
    chat(stream_options={"include_usage": "maybe"}),
    (CHAT, {"messages": []}), (CHAT, {"messages": "hi"}), (CHAT, {}), (CHAT, []), (CHAT, 3),
    (CHAT, {"messages": [{"role": "root", "content": "x"}]}),
    (CHAT, {"messages": [{"role": "user"}]}), (CHAT, {"messages": [{"content": "x"}]}),
    (CHAT, {"messages": [{"role": "user", "content": 3}]}),
    (CHAT, {"messages": [{"role": "user", "content": {"type": "text"}}]}),
    (CHAT, {"messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]}),
    (CHAT, {"messages": [{"role": "user", "content": "a b " * 1000}]}),
    (CHAT, {"messages": HI * 1001}),
    text(prompt=""), text(prompt=[]), text(prompt=[[]]), text(prompt=[-1]), text(prompt=[10**6]),
    text(prompt=[10**20]), text(prompt=["a", 3]), text(prompt=[[1], 3]), text(prompt=["a"] * 65),
    text(prompt={"a": 1}), text(prompt=None), text(prompt=[1] * 500), text(prompt=[1.5]),
    text(logprobs=100), text(logprobs=True), text(max_tokens=-2), text(echo="yes"), text(suffix="x"),
    text(best_of=5), text(prompt=["a"] * 33, n=2),
    ("/tokenize", {"content": "a" * 30_000}), ("/tokenize", {"content": "!" * 30_000}),
    ("/tokenize", {"content": "one " * 9000 + "é" * 9000}), ("/tokenize", {"content": "々" * 9000}),
    ("/tokenize", {"content": " " * 9000}), ("/tokenize", {"content": "e\u0301" * 9000}),
    ("/tokenize", {"content": "\x1c!" * 9000}), ("/tokenize", {"content": "aZ" * 9000}),
    ("/tokenize", {"content": 3}), ("/tokenize", {}), ("/detokenize", {"tokens": [-1]}),
    ("/detokenize", {"tokens": [10**6]}), ("/detokenize", {"tokens": "x"}),
    (CHAT, b""), (CHAT, b"{"), (CHAT, b"null"), (CHAT, b"\xff\xfe{}"), (CHAT, DEEP),
    (CHAT, b'{"messages": [{"role": "user", "content": "\xc3\x28"}]}'),
    (CHAT, b'{"messages": [{"role": "user", "content": "\\ud800"}]}'),
    (CHAT, b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}'),
    (CHAT, b'{"messages": [{"role": "user", "content": "x"}], "temperature": Infinity}'),
    (CHAT, b'{"messages": [{"role": "user", "content": "x"}], "top_p": -Infinity}'),
    (CHAT, b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}'),
    (CHAT, b'{"max_tokens": ' + b"9" * 10_000 + b"}"),
    (CHAT, b'{"messages": [{"role": "user", "content": "' + b"x" * 1_100_000 + b'"}]}'),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(BODIES)))
def test_a_wrong_body_is_a_4xx(served: Served, number: int) -> None:
    path, body = BODIES[number]
    status, data, headers = served.ask("POST", path, body)
    assert 400 <= status < 500, (path, str(body)[:200], status, data)
    assert headers["content-type"] == "application/json"
    error = json.loads(data)["error"]
    assert error["message"] and error["type"] and error["code"] and len(data) < 2000


ENDLESS: list[dict[str, Any]] = [
    {"type": "array", "items": {}, "minItems": 10**12},
    {"type": "string", "pattern": "^(((a*)*)*)*$"},
    {"$defs": {"t": {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/t"}}] * 10}},
     "type": "array", "items": {"$ref": "#/$defs/t"}},
]  # fmt: skip


@pytest.mark.parametrize("schema", ENDLESS)
def test_a_schema_of_endless_texts_is_answered_within_max_tokens(
    served: Served, schema: dict[str, Any]
) -> None:
    form = {"type": "json_schema", "json_schema": {"schema": schema}}
    began = time.perf_counter()
    body = {"messages": HI, "max_tokens": 40, "response_format": form}
    assert served.json(CHAT, body)["choices"][0]["message"]["content"]
    assert time.perf_counter() - began < 10


REQUESTS: list[tuple[str, str, dict[str, str]]] = [
    ("GET", "/health", {"host": "evil.example"}),
    ("GET", "/health", {"host": "evil.example:80"}),
    ("GET", "/health", {"host": "127.0.0.1.evil.example"}),
    ("GET", "/health", {"host": "localhost.evil.example"}),
    ("GET", "/health", {"host": "localhost@evil.example"}),
    ("GET", "/health", {"host": ""}),
    ("GET", "/health", {"host": "localhost/../x"}),
    ("GET", "/health", {"host": "localhost:99999"}),
    ("GET", "/health", {"origin": "http://evil.example"}),
    ("GET", "/health", {"origin": "null"}),
    ("GET", "/health", {"origin": "http://localhost"}),
    ("POST", TEXT, {"origin": "https://127.0.0.1"}),
    ("OPTIONS", TEXT, {"origin": "http://evil.example", "access-control-request-method": "POST"}),
    ("GET", "/../../etc/passwd", {}),
    ("GET", "/..%2f..%2fetc%2fpasswd", {}),
    ("GET", "/%2e%2e/%2e%2e/etc/passwd", {}),
    ("GET", "/page.html", {}),
    ("GET", "//health", {}),
    ("GET", "/health/", {}),
    ("GET", "/v1/models/../../etc/passwd", {}),
    ("GET", "/v1/models/%00", {}),
    ("DELETE", "/v1/models/f32", {}),
    ("GET", CHAT, {}),
    ("PUT", CHAT, {}),
    ("BREW", "/", {}),
    ("POST", "/health", {}),
]


@pytest.mark.parametrize("number", range(len(REQUESTS)))
def test_a_wrong_request_is_a_4xx(served: Served, number: int) -> None:
    method, path, headers = REQUESTS[number]
    status, data, _ = served.ask(method, path, headers=headers)
    assert 400 <= status < 500, (method, path, headers, status, data)
    assert b"root:" not in data


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_simple_requests_of_web_pages_are_refused(served: Served, kind: str) -> None:
    body = json.dumps({"prompt": "hi"}).encode()
    status, _, _ = served.ask("POST", TEXT, body, {"content-type": kind})
    assert status == 415


def raw(served: Served, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        # The server may close before it has read everything, which resets the connection.
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65536):
                answer += part
    return answer


@pytest.mark.parametrize(
    "data",
    [
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"\x00\x01\x02\r\n\r\n",
        b"GET\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000,
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 100 + b"\r\n",
        b"GET /" + b"x" * 100_000,
        b"GET /health HTTP/1.1\r\nHost: local\x00host\r\n\r\n",
    ],
)  # fmt: skip
def test_what_is_no_http_is_a_4xx(served: Served, data: bytes) -> None:
    answer = raw(served, data)
    assert answer.startswith(b"HTTP/1.1 4"), answer[:200]


def test_log_probabilities_have_a_bound(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "MAX_LOGPROBS", 5000)
    much = {"prompt": [[1] * 100] * 64, "echo": True, "logprobs": 0, "max_tokens": 0}
    status, data, _ = served.ask("POST", TEXT, much)
    assert status == 400 and "log probabilities" in json.loads(data)["error"]["message"]
    whole = {"messages": HI, "logprobs": True, "top_logprobs": 20}
    assert served.json(CHAT, whole)["choices"], "one answer may have them, however long"
    assert served.ask("POST", CHAT, whole | {"n": 3})[0] == 400
    assert served.json(TEXT, much | {"prompt": [[1] * 100] * 40})["choices"]


@pytest.mark.parametrize("said", [b"", b"GET /health HTTP/1.1\r\nHost: loc", b"whole"])
def test_who_says_nothing_is_not_waited_for(
    served: Served, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(connections, "HEADERS_TIMEOUT_S", 0.3)
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as waiting:
        if said == b"whole":  # and then half of a second one
            waiting.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            while b"\r\n\r\n{" not in answer or not answer.endswith(b"}"):
                answer += waiting.recv(4096)
            assert answer.startswith(b"HTTP/1.1 200")
            said = b"GET /health HTTP/1.1\r\nHost: loc"
        waiting.sendall(said)
        assert waiting.recv(4096) == b""
    assert served.ask("GET", "/health")[0] == 200


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="of Linux")
def test_an_answer_that_nobody_reads_is_dropped(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "UNREAD_TIMEOUT_S", 0.5)
    body = json.dumps({"content": "a b " * 200_000}).encode()
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.settimeout(30)
        deaf.connect(("127.0.0.1", served.port))
        head = f"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        deaf.sendall(head.encode() + body)
        assert deaf.recv(15) == b"HTTP/1.1 200 OK"
        time.sleep(3)
        with pytest.raises(ConnectionResetError):
            while deaf.recv(1 << 16):
                pass


def test_lines_of_the_log_cannot_be_forged(
    served: Served, capfd: pytest.CaptureFixture[str]
) -> None:
    from edgeft.server.metrics import Log, Metrics

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 404})

    async def nothing(*_: Any) -> Any:
        return {}

    import asyncio

    scope = {"type": "http", "method": "GET", "path": "/x\nedgeft: all is well\x1b[2J"}
    with ThreadPoolExecutor(1) as pool:  # this thread may have a browser's loop
        pool.submit(lambda: asyncio.run(Log(app, Metrics())(scope, nothing, nothing))).result()
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and "\x1b" not in err
