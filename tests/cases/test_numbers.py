"""Every numeric field of every API with numbers that no client means: an answer or a 4xx, never a 5xx.

The requests go through the schemas, the translations of other APIs and the limits, which is all that
happens before an engine gets them. `tests/server/test_abuse.py` sends some over HTTP.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from edgeft.errors import EdgeftError
from edgeft.server import schemas
from edgeft.server.bodies import checked
from edgeft.server.requests import chat_requests, completion_requests
from edgeft.server.responses import Refusal, refusal_for
from edgeft.server.shims import anthropic, ollama, responses_api
from edgeft.server.shims.stored_responses import StoredResponses

pytestmark = pytest.mark.unit

HI = [{"role": "user", "content": "hi"}]
NUMBERS: tuple[Any, ...] = (
    -1, 0, 1, 2, -2, 7, 2**31 - 1, 2**31, -(2**31), 2**32, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 2**64,
    -(2**64), 10**30, 10**400, -(10**400), 0.0, -0.0, 0.5, -0.5, 1.0, 1.5, 2.5, 1e-320, 1e-45, 3.4e38, 1e39,
    1e308, -1e308, math.nan, math.inf, -math.inf, True, False, None, "1", "-1", "NaN", "", "x" * 5000,
    [], [1], {}, {"1": 1},
)  # fmt: skip
SHARED = ("n", "seed", "temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty",
          "repeat_penalty", "repetition_penalty", "repeat_last_n", "max_tokens", "n_predict", "logprobs",
          "top_logprobs", "logit_bias", "best_of", "min_tokens", "n_keep", "n_discard", "n_probs", "mirostat",
          "typical_p", "tfs_z", "top_a", "stop", "stream", "ignore_eos")  # fmt: skip
OLLAMA = ("num_predict", "num_ctx", "temperature", "top_k", "top_p", "min_p", "seed", "repeat_penalty",
          "repeat_last_n", "presence_penalty", "frequency_penalty", "num_keep", "mirostat", "typical_p")  # fmt: skip
FULL = frozenset({"logprobs", "grammar", "penalties", "top_k", "min_p", "bias", "ignore_eos"})
ENGINE: Any = SimpleNamespace(
    name="any", supports=FULL,
    runtime=SimpleNamespace(
        encode=lambda text: [ord(c) % 128 for c in text], vocab_size=128, context=64, adds_bos=False,
        chat=SimpleNamespace(render=lambda *_, **__: "hi", bos_token="", source=""),
    ),
)  # fmt: skip
LIMIT = 64


def chat(fields: dict[str, Any]) -> list[Any]:
    return chat_requests(body(schemas.Chat, messages=HI, **fields), ENGINE, LIMIT)


def completion(fields: dict[str, Any]) -> list[Any]:
    return completion_requests(body(schemas.Completion, prompt="hi", **fields), ENGINE, LIMIT)


def of_ollama(fields: dict[str, Any]) -> list[Any]:
    shim = ollama.OllamaShim(body(ollama.Chat, messages=HI, model="m", options=fields))
    return chat_requests(checked(shim.openai, schemas.Chat), ENGINE, LIMIT)


def of_anthropic(fields: dict[str, Any]) -> list[Any]:
    asked = {"max_tokens": 5} | fields
    shim = anthropic.AnthropicShim(body(anthropic.Messages, messages=HI, model="m", **asked))
    return chat_requests(checked(shim.openai, schemas.Chat), ENGINE, LIMIT)


def of_responses(fields: dict[str, Any]) -> list[Any]:
    asked = body(responses_api.Responses, input="hi", model="m", **fields)
    shim = responses_api.ResponsesShim(asked, StoredResponses())
    return chat_requests(checked(shim.openai, schemas.Chat), ENGINE, LIMIT)


def embeddings(fields: dict[str, Any]) -> list[Any]:
    body(schemas.Embeddings, **{"input": "hi"} | fields)
    return []


def body(schema: Any, **fields: Any) -> Any:
    """As it comes: a JSON text."""
    return checked(json.dumps(fields).encode(), schema)


APIS: dict[str, tuple[Callable[[dict[str, Any]], list[Any]], tuple[str, ...]]] = {
    "chat": (chat, (*SHARED, "max_completion_tokens")),
    "completion": (completion, (*SHARED, "echo", "suffix")),
    "ollama": (of_ollama, OLLAMA),
    "anthropic": (of_anthropic, (*SHARED, "max_tokens", "stop_sequences", "thinking")),
    "responses": (of_responses, (*SHARED, "max_output_tokens", "max_tool_calls", "truncation")),
    "embeddings": (embeddings, ("dimensions", "input", "encoding_format")),
}


def in_range(request: Any) -> bool:
    """Whether an engine can take the numbers of a request: those of C are of 32 bits, or floats."""
    how = request.sampling
    floats = (how.temperature, how.top_p, how.min_p, how.repeat_penalty, how.frequency_penalty,
              how.presence_penalty, *(value for _, value in how.bias))  # fmt: skip
    return (
        0 <= request.max_tokens <= LIMIT
        and all(math.isfinite(value) and abs(value) <= 100 for value in floats)
        and how.repeat_penalty > 0
        and 0 <= how.top_k <= 2**20
        and -1 <= how.repeat_last_n < 2**31
        and all(0 <= token < 128 for token, _ in how.bias)
        and (request.logprobs is None or 0 <= request.logprobs <= 20)
    )


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("count", [500, pytest.param(17_000, marks=pytest.mark.slow)])
def test_a_number_is_answered_or_refused(api: str, count: int) -> None:
    ask, names = APIS[api]
    draw, answered = random.Random(len(api)), 0
    bodies = [{name: value} for name in names for value in NUMBERS] if count > 1000 else []
    while len(bodies) < count:
        chosen = draw.sample(names, draw.choice((1, 1, 2, 3)))
        bodies.append({name: draw.choice(NUMBERS) for name in chosen})
    for fields in bodies:
        try:
            requests = ask(fields)
        except Refusal as refusal:
            assert 400 <= refusal.status < 500, fields
        except EdgeftError as error:
            assert 400 <= refusal_for(error).status < 500, fields
        else:
            answered += 1
            assert all(map(in_range, requests)), fields
    assert 0 < answered < len(bodies)
