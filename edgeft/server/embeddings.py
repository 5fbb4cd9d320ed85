"""Takes an engine and token ids, gives the objects of /v1/embeddings. For a thread of its own."""

from __future__ import annotations

import array
import base64
import contextlib
import math
from collections.abc import Callable
from typing import Any

from edgeft.errors import InputError
from edgeft.server.engine import Engine
from edgeft.server.responses import client_left
from edgeft.server.schemas import Embeddings


def embedded(
    engine: Engine, prompts: list[list[int]], body: Embeddings, has_left: Callable[[], bool]
) -> list[dict[str, Any]]:
    """OpenAI's objects of the vectors; Refusal as soon as the client has left."""
    data: list[dict[str, Any]] = []
    with contextlib.closing(engine.embeddings(prompts)) as vectors:
        for index, vector in enumerate(vectors):
            values = _encoded(_first(vector, body.dimensions), body.encoding_format)
            data.append({"object": "embedding", "index": index, "embedding": values})
            if has_left():
                raise client_left()
    return data


def _first(vector: list[float], dimensions: int | None) -> list[float]:
    """The first values of a vector, scaled to length 1 again; InputError for more than it has."""
    if dimensions is None:
        return vector
    if dimensions > len(vector):
        raise InputError(f"dimensions is {dimensions}, a vector has {len(vector)} values")
    length = math.hypot(*vector[:dimensions]) or 1.0
    return [value / length for value in vector[:dimensions]]


def _encoded(vector: list[float], encoding_format: str | None) -> list[float] | str:
    if encoding_format != "base64":
        return vector
    return base64.b64encode(array.array("f", vector).tobytes()).decode()
