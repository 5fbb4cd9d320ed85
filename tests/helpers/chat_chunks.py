"""Answers of chat completions as the server gives them: chunks of a stream, and the same as a whole."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from edgeft.server.shims.shim import Shim

USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 5,
    "total_tokens": 14,
    "prompt_tokens_details": {"cached_tokens": 4},
}
TIMINGS = {"prompt_ms": 2.0, "predicted_ms": 3.0}
HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}


def chunk(delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return HEAD | {"choices": [choice | more], "usage": USAGE | {"completion_tokens": 0}}


def call(index: int, arguments: str, name: str = "", call_id: str = "") -> dict[str, Any]:
    """A tool call within a delta: with its name at first, and then more of its arguments."""
    if not name:
        return {"index": index, "function": {"arguments": arguments}}
    function = {"name": name, "arguments": arguments}
    return {"index": index, "id": call_id, "type": "function", "function": function}


THINKS_SAYS_AND_CALLS = [
    chunk({"role": "assistant", "content": ""}),
    chunk({"reasoning_content": "Let me "}),
    chunk({"reasoning_content": "see."}),
    chunk({"content": "The "}),
    chunk({"content": "weather."}),
    chunk({"tool_calls": [call(0, "", "weather", "call_a")]}),
    chunk({"tool_calls": [call(0, '{"city": ')]}),
    chunk({"tool_calls": [call(0, '"Oslo"}')]}),
    chunk({"tool_calls": [call(1, "{}", "clock", "call_b")]}),
    chunk({}, "tool_calls"),
    HEAD | {"choices": [], "usage": USAGE, "timings": TIMINGS},
]
WHOLE = HEAD | {
    "object": "chat.completion",
    "usage": USAGE,
    "timings": TIMINGS,
    "choices": [
        {
            "index": 0,
            "finish_reason": "tool_calls",
            "message": {
                "role": "assistant",
                "content": "The weather.",
                "reasoning_content": "Let me see.",
                "tool_calls": [
                    {
                        "id": "call_a",
                        "type": "function",
                        "function": {"name": "weather", "arguments": '{"city": "Oslo"}'},
                    },
                    {
                        "id": "call_b",
                        "type": "function",
                        "function": {"name": "clock", "arguments": "{}"},
                    },
                ],
            },
        }
    ],
}
"""the same answer"""
CUT = [
    chunk({"role": "assistant", "content": ""}),
    chunk({"content": "One, "}),
    chunk({"content": "two"}, "length"),
    HEAD | {"choices": [], "usage": USAGE, "timings": TIMINGS},
]
"""an answer that max_tokens ended"""
FAILED = [
    chunk({"role": "assistant", "content": ""}),
    chunk({"content": "One, "}),
    {"error": {"message": "the engine failed", "type": "server_error", "code": "engine_error"}},
]


def streamed(shim: Shim, chunks: list[dict[str, Any]], together: int = 1) -> bytes:
    """What a client reads of these chunks, of which so many come together."""

    async def batches() -> AsyncIterator[list[dict[str, Any]]]:
        for begin in range(0, len(chunks), together):
            yield chunks[begin : begin + together]

    async def read() -> bytes:
        return b"".join([part async for part in shim.encoded(batches())])

    # In a thread: a browser of other tests may have a loop that runs in this one.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(read())).result()


def events(data: bytes) -> list[dict[str, Any]]:
    """Server-sent events, whose names are the types in them."""
    blocks = data.decode().removesuffix("\n\n").split("\n\n")
    lines = [block.split("\n") for block in blocks]
    found = [json.loads(line.removeprefix("data: ")) for _, line in lines]
    assert [name.removeprefix("event: ") for name, _ in lines] == [e["type"] for e in found]
    return found
