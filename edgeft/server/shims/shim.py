"""What every shim has: a request of another API as one of OpenAI's, and the answer in that API's form."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

from pydantic import ConfigDict

from edgeft.server.responses import Refusal
from edgeft.server.schemas import Body
from edgeft.server.shims.answer import Answer, Part, Step

Event = dict[str, Any]


class ShimBody(Body):
    """A body whose further fields, such as top_k, are those of chat completions."""

    model_config = ConfigDict(strict=True, extra="allow")


class Shim:
    """One request. A subclass sets `openai` and writes the answer; it lives as long as the request."""

    path = "/v1/chat/completions"
    """of the request in OpenAI's API"""
    media_type = "text/event-stream; charset=utf-8"
    """of a stream"""

    def __init__(self, openai: dict[str, Any], thinking: bool | None = None) -> None:
        """`openai`: the body for `path`. `thinking`: whether the model should think before it answers;
        None = as it does."""
        if openai.get("n") not in (None, 1):
            raise Refusal(400, "n is not supported here", "unsupported")
        if openai.get("return_progress"):
            raise unsupported("return_progress")
        if openai.get("stream"):
            openai |= {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
        self.openai, self.thinking = openai, thinking

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The body of a whole answer."""
        raise NotImplementedError

    def opening(self, answer: Answer) -> Iterator[Event]:
        """Before the first part; `answer` knows the model and the tokens of the prompt."""
        yield from ()

    def step(self, step: Step) -> Iterator[Event]:
        """What happens to a part."""
        what, part, text = step
        if what == "start":
            return self.start(part)
        return self.delta(part, text) if what == "delta" else self.stop(part)

    def start(self, part: Part) -> Iterator[Event]:
        yield from ()

    def delta(self, part: Part, text: str) -> Iterator[Event]:
        yield from ()

    def stop(self, part: Part) -> Iterator[Event]:
        yield from ()

    def closing(self, answer: Answer) -> Iterator[Event]:
        """After the last part."""
        yield from ()

    def failed(self, error: dict[str, Any], answer: Answer) -> Iterator[Event]:
        """In place of all that would come. `error`: OpenAI's object."""
        raise NotImplementedError

    def encode(self, event: Event) -> bytes:
        """A server-sent event, which is named by its type."""
        data = json.dumps(event, ensure_ascii=False)
        return f"event: {event['type']}\ndata: {data}\n\n".encode("utf-8", "replace")

    async def encoded(self, batches: AsyncIterator[list[dict[str, Any]]]) -> AsyncIterator[bytes]:
        """A stream of chunks of OpenAI's API -> the bytes of this API's stream."""
        answer = Answer()
        opened = False
        async for batch in batches:
            events: list[Event] = []
            for chunk in batch:
                if "error" in chunk:
                    events += self.failed(chunk["error"], answer)
                    yield b"".join(map(self.encode, events))
                    return
                steps = list(answer.push(chunk))
                if not opened:
                    events += self.opening(answer)
                    opened = True
                for step in steps:
                    events += self.step(step)
            if events:
                yield b"".join(map(self.encode, events))
        events = [event for step in answer.end() for event in self.step(step)]
        yield b"".join(map(self.encode, [*events, *self.closing(answer)]))


def parsed_arguments(part: Part) -> dict[str, Any]:
    """Of a tool call; {} where the answer ended within them."""
    try:
        arguments = json.loads(part.text)
    except (ValueError, RecursionError):
        arguments = {}
    return arguments if isinstance(arguments, dict) else {}


def function_tool(name: Any, description: Any, parameters: Any, **more: Any) -> dict[str, Any]:
    """A tool of chat completions."""
    fields = {"name": name, "description": description, "parameters": parameters, **more}
    function = {key: value for key, value in fields.items() if value is not None}
    return {"type": "function", "function": function}


def unsupported(what: str) -> Refusal:
    return Refusal(400, f"{what[:200]} is not supported", "unsupported")
