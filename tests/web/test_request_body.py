"""What is read of a request's body, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from edgeft.web import request_body
from edgeft.web.request_body import BodyError, read_json_object

pytestmark = pytest.mark.unit
requests = pytest.importorskip("starlette.requests")

LIMIT = 10
JSON = {"content-type": "application/json; charset=utf-8"}


def body(
    *parts: bytes, headers: dict[str, str] = JSON, is_whole: bool = True, then: str = ""
) -> dict[str, Any]:
    """The JSON object of a request that comes in parts; `then`: what comes in place of a missing rest."""
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages += [{"type": "http.request", "body": b""}] if is_whole else []

    async def receive() -> Any:
        if messages:
            return messages.pop(0)
        if then:
            return {"type": then}
        return await asyncio.sleep(60)

    sent = [(name.encode(), value.encode()) for name, value in headers.items()]
    request = requests.Request({"type": "http", "headers": sent}, receive)
    return run(read_json_object(request, LIMIT))


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """In a thread: this one may have the event loop of a browser."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def test_a_body_comes_in_parts_and_without_a_length() -> None:
    assert body(b'{"a"', b": 1}") == {"a": 1}
    assert body(b'{"a": 123}', headers=JSON | {"content-length": "10"}) == {"a": 123}


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ({"parts": [b'{"a": 123', b"4}"]}, 413),
        ({"parts": [], "headers": JSON | {"content-length": "11"}, "is_whole": False}, 413),
        ({"parts": [b"{}"], "headers": {"content-type": "text/plain"}}, 415),
        ({"parts": [b"{}"], "headers": {}}, 415),
        ({"parts": [b"{"], "is_whole": False}, 408),
        ({"parts": [b"{"], "is_whole": False, "then": "http.disconnect"}, 499),
        ({"parts": [b"[]"]}, 400),
        ({"parts": [b"{"]}, 400),
        ({"parts": [b"\xff"]}, 400),
        ({"parts": []}, 400),
    ],
)
def test_what_is_no_body_is_refused(
    monkeypatch: pytest.MonkeyPatch, sent: dict[str, Any], status: int
) -> None:
    monkeypatch.setattr(request_body, "BODY_TIMEOUT_S", 0.02)
    with pytest.raises(BodyError) as refused:
        body(*sent.pop("parts"), **sent)
    assert refused.value.status == status and refused.value.code


def test_the_answer_to_a_body_that_is_not_read_ends_the_connection() -> None:
    answer = run(request_body.body_error_response(None, BodyError(413, "10 bytes at most")))  # type: ignore[arg-type]
    assert answer.status_code == 413 and answer.headers["connection"] == "close"
    answer = run(request_body.body_error_response(None, BodyError(400, "no JSON object")))  # type: ignore[arg-type]
    assert "connection" not in answer.headers
