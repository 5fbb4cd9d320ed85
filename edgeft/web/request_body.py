"""Takes an HTTP request, gives its body as bytes or as a JSON object; BodyError for everything else.

    data = await read_body(request, max_bytes=4096)
    value = await read_json_object(request, max_bytes=4096)

The limits hold whether or not the request says a length.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from edgeft.web.guard import error_body

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

BODY_TIMEOUT_S = 30.0
"""seconds within which a whole body must arrive"""
LONG_BODY_TIMEOUT_S = 1.0
"""the same for one that is longer than allowed, by the length that it says"""
JSON_TYPE = "application/json"
CODES = {400: "invalid_value", 408: "timeout", 413: "body_too_large", 415: "unsupported_media_type",
         499: "client_left"}  # fmt: skip
UNREAD = (408, 413)
"""statuses after which the connection ends, since the rest of the body is not read"""


class BodyError(Exception):
    """A body that is not taken: 400 no JSON object, 408 late, 413 long, 415 of another type, 499 broken off."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, CODES[status]


async def read_body(request: Request, max_bytes: int, media_type: str = JSON_TYPE) -> bytes:
    """The bytes of a body of one media type."""
    from starlette.requests import ClientDisconnect

    sent_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if sent_type != media_type:
        raise BodyError(415, f"the Content-Type must be {media_type}")
    too_long = BodyError(413, f"a body has {max_bytes} bytes at most")
    length = request.headers.get("content-length", "")  # h11 has checked that it is a number
    known_too_long = bool(length) and int(length) > max_bytes
    data = bytearray()
    try:  # even then it is read: a client that still writes would not see the refusal
        async with asyncio.timeout(LONG_BODY_TIMEOUT_S if known_too_long else BODY_TIMEOUT_S):
            async for part in request.stream():
                data += part
                if len(data) > max_bytes:
                    raise too_long
    except TimeoutError:
        late = BodyError(408, "the body did not come")
        raise (too_long if known_too_long else late) from None
    except ClientDisconnect:
        raise BodyError(499, "the client has left") from None
    return bytes(data)


async def read_json_object(request: Request, max_bytes: int) -> dict[str, Any]:
    """The JSON object of a body."""
    data = await read_body(request, max_bytes)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise BodyError(400, "not a JSON object")
    return value


async def body_error_response(request: Request, error: Any) -> Response:
    """The answer to a BodyError, as an exception handler of Starlette."""
    from starlette.responses import JSONResponse

    headers = {"connection": "close"} if error.status in UNREAD else {}
    return JSONResponse(error_body(error.message, error.code), error.status, headers)
