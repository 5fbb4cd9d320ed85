"""Takes texts or token ids, gives the objects of /v1/embeddings: one request after the other."""

from __future__ import annotations

import array
import asyncio
import base64
import contextlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgeft.errors import EdgeftError, InputError
from edgeft.server.engine import Engine
from edgeft.server.jobs import Busy
from edgeft.server.requests import check_ids, tokenized
from edgeft.server.responses import Refusal, cancelled_on_disconnect, client_left, refusal_for
from edgeft.server.schemas import Embeddings

if TYPE_CHECKING:
    from starlette.requests import Request

MAX_EMBEDDING_REQUESTS = 16
"""that may wait for one another; more are answered with 429"""


class EmbeddingQueue:
    def __init__(self) -> None:
        self._requests = 0
        """that wait or run"""
        self._lock = asyncio.Lock()

    async def vectors(
        self, request: Request, engine: Engine, body: Embeddings, truncate: bool = False
    ) -> tuple[list[dict[str, Any]], int]:
        """(OpenAI's objects of the vectors, tokens of all texts). `truncate`: a text beyond the context is
        cut off there; otherwise it is refused."""
        if self._requests >= MAX_EMBEDDING_REQUESTS:
            raise refusal_for(Busy(1))
        self._requests += 1
        prompts: list[list[int]] = []
        try:
            prompts = await asyncio.to_thread(tokenized, body.input, engine.runtime)
            if truncate:
                prompts = [ids[: engine.runtime.context] for ids in prompts]
            for ids in prompts:
                check_ids(ids, engine.runtime)
            async with cancelled_on_disconnect(request.receive) as has_left, self._lock:
                data = await asyncio.to_thread(_embedded, engine, prompts, body, has_left.is_set)
            return data, sum(map(len, prompts))
        except NotImplementedError:
            problem = "this artifact's engine gives no embeddings"
            raise Refusal(501, problem, "not_implemented") from None
        except EdgeftError as error:
            raise refusal_for(error) from None
        finally:
            self._requests -= 1
            request.scope["edgeft.tokens"] = sum(map(len, prompts)), 0


def _embedded(
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
