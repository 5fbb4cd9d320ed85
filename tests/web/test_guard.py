"""Which requests the guard refuses, and what it adds to answers. Over HTTP: tests/server, tests/human."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from edgeft.web.guard import Guard, Message, Refusal, Rules

pytestmark = pytest.mark.unit

STRICT = Rules(
    addresses=frozenset({"127.0.0.1:8000", "localhost:8000"}),
    path_prefix="/secret/",
    post_origin=True,
    headers=((b"x-content-type-options", b"nosniff"),),
)
HOST = "127.0.0.1:8000"


def ask(
    rules: Rules, method: str = "GET", path: str = "/secret/state", **headers: str
) -> tuple[int, dict[str, str], Any]:
    """(status, headers, JSON body or None) of a request to an application that answers 200."""
    messages: list[Message] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def send(message: Message) -> None:
        messages.append(message)

    async def receive() -> Message:
        raise AssertionError("the guard reads no body")

    pairs = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": pairs}
    with ThreadPoolExecutor(1) as pool:  # this thread may have a browser's loop
        pool.submit(lambda: asyncio.run(Guard(app, rules)(scope, receive, send))).result()
    start, body = messages
    sent = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], sent, json.loads(body["body"]) if body["body"] else None


def test_rules_without_limits_allow_localhost_and_addresses() -> None:
    for host in ("localhost", "localhost:1", "127.0.0.1", "[::1]:80", "192.0.2.7"):
        assert ask(Rules(), host=host)[0] == 200
    for host in ("evil.example", "localhost.evil.example", "user@localhost", "localhost/x", "",
                 "[::1]evil", "[::1", "::1", "[fe80::1%eth0]", "[::1]:x", "localhost:99999", "a b",
                 "localhost#", "[localhost]", "127.0.0.1:80:80"):  # fmt: skip
        assert ask(Rules(), host=host)[0] == 403
    assert ask(Rules(hosts=frozenset({"box.local"})), host="box.local:80")[0] == 200
    assert ask(Rules())[0] == 403


@pytest.mark.parametrize(
    ("path", "host", "status"),
    [
        ("/secret/state", HOST, 200),
        ("/secret/state", "localhost:8000", 200),
        ("/secret/state", "127.0.0.1", 421),
        ("/secret/state", "127.0.0.1:80", 421),
        ("/secret/state", "192.0.2.7:8000", 421),
        ("/secret", HOST, 404),
        ("/secreT/state", HOST, 404),
        ("/", HOST, 404),
    ],
)
def test_strict_rules_allow_one_address_and_one_path(path: str, host: str, status: int) -> None:
    assert ask(STRICT, path=path, host=host)[0] == status


def test_strict_rules_need_an_origin_to_post() -> None:
    own = f"http://{HOST}"
    assert ask(STRICT, "POST", host=HOST)[0] == 403
    assert ask(STRICT, "POST", host=HOST, origin=own)[0] == 200
    assert ask(STRICT, "GET", host=HOST)[0] == 200
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", "https://127.0.0.1:8000"):
        assert ask(STRICT, "POST", host=HOST, origin=origin)[0] == 403
        assert ask(STRICT, "GET", host=HOST, origin=origin)[0] == 403
    assert ask(Rules(), "POST", host="localhost")[0] == 200


def test_every_answer_has_the_headers_of_the_rules() -> None:
    for path in ("/secret/", "/other"):
        assert ask(STRICT, path=path, host=HOST)[1]["x-content-type-options"] == "nosniff"
    status, headers, body = ask(STRICT, host="evil.example")
    assert status == 421 and headers["x-content-type-options"] == "nosniff"
    assert headers["connection"] == "close" and set(body) == {"error"}


def test_who_may_ask_is_asked_last() -> None:
    asked: list[bytes | None] = []

    def authorize(scope: Any, token: bytes | None) -> Refusal | None:
        asked.append(token)
        headers = [(b"retry-after", b"7")]
        return None if token == b"right" else Refusal(429, {"error": {}}, headers)

    rules = Rules(authorize)
    assert ask(rules, host="localhost", authorization="Bearer right")[0] == 200
    status, headers, _ = ask(rules, host="localhost", authorization="right")
    assert status == 429 and headers["retry-after"] == "7" and headers["connection"] == "close"
    assert ask(rules, path="/health", host="localhost")[0] == 200
    assert ask(rules, "OPTIONS", host="localhost")[0] == 200
    assert ask(rules, host="evil.example", authorization="Bearer right")[0] == 403
    assert asked == [b"right", None]
