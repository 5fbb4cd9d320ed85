"""Takes an HTTP request, gives its JSON body by a schema; Refusal for everything else."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeVar

from edgeft.server.responses import Refusal
from edgeft.server.schemas import INSTEAD, MAX_BODY_BYTES, Body, Generation, unsupported_field
from edgeft.web import request_body

if TYPE_CHECKING:
    from pydantic import ValidationError
    from starlette.requests import Request

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
    try:
        data = await request_body.read_body(request, MAX_BODY_BYTES)
    except request_body.BodyError as error:
        raise Refusal(error.status, error.message, error.code) from None
    return checked(data, schema)


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
