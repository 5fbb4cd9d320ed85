"""Errors become HTTP statuses."""

from __future__ import annotations

import pytest

from edgeft.errors import EdgeftError, InputError, ResourceError, TooLong
from edgeft.server.jobs import Busy
from edgeft.server.responses import client_left, refusal_for

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("error", "status", "code", "kind"),
    [
        (Busy(7), 429, "queue_full", "rate_limit_exceeded"),
        (TooLong(9, 8), 400, "context_length_exceeded", "invalid_request_error"),
        (InputError("x"), 400, "invalid_value", "invalid_request_error"),
        (ResourceError("x"), 503, "unavailable", "server_error"),
        (EdgeftError("x"), 500, "engine_error", "server_error"),
    ],
)
def test_the_status_of_an_error(error: EdgeftError, status: int, code: str, kind: str) -> None:
    refusal = refusal_for(error)
    assert refusal.status == status and refusal.retry_s == (7 if status == 429 else None)
    assert refusal.body == {
        "error": {"message": str(error), "type": kind, "param": None, "code": code}
        | ({"n_prompt_tokens": 9, "n_ctx": 8} if isinstance(error, TooLong) else {})
    }


def test_a_client_that_left_is_counted_as_its_own_status() -> None:
    assert client_left().status == 499
