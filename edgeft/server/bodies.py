"""Takes an HTTP request, gives its JSON body by a schema; Refusal for everything else."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, TypeVar

from edgeft.server.responses import Refusal, client_left
from edgeft.server.schemas import INSTEAD, MAX_BODY_BYTES, Body, Generation, unsupported_field

if TYPE_CHECKING:
    from pydantic import ValidationError
    from starlette.requests import Request

BODY_TIMEOUT_S = 30.0
B = TypeVar("B", bound=Body)


def _problem(error: ValidationError) -> str:
    """The field and what is wrong with it. Where a field may have several types, each has an error; the
    deepest one is of the type that was meant."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    deepest = max(errors, key=lambda one: len(one["loc"]))
    names = [str(part)[:64] for part in deepest["loc"]]
    where = ".".join(name for name in names if name.isidentifier() or name.isdigit())
    message = deepest["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


async def read_body(request: Request, schema: type[B]) -> B:
    """The request's JSON by its schema."""
    from starlette.requests import ClientDisconnect

    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise Refusal(415, "the Content-Type must be application/json", "unsupported_media_type")
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for part in request.stream():
                data += part
                if len(data) > MAX_BODY_BYTES:
                    raise Refusal(
                        413, f"a body has {MAX_BODY_BYTES} bytes at most", "body_too_large"
                    )
    except TimeoutError:
        raise Refusal(408, "the body did not come", "timeout") from None
    except ClientDisconnect:
        raise client_left() from None
    return checked(bytes(data), schema)


def checked(data: bytes | dict[str, Any], schema: type[B]) -> B:
    """A body, as JSON or parsed, by its schema."""
    from pydantic import ValidationError

    try:
        if isinstance(data, bytes):
            body = schema.model_validate_json(data)
        else:
            body = schema.model_validate(data)
    except ValidationError as error:
        raise Refusal(400, _problem(error)[:500], "invalid_value") from None
    if isinstance(body, Generation):
        raw = json.loads(data) if isinstance(data, bytes) else data
        if name := unsupported_field(raw):
            hint = f" ({INSTEAD[name]} is)" if name in INSTEAD else ""
            raise Refusal(400, f"{name} is not supported{hint}", "unsupported")
    return body
