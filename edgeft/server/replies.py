"""What is answered: OpenAI's objects, whole or in chunks."""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from edgeft.server.jobs import Chosen, Event, Job

Piece = Callable[[int], bytes]


class Shape:
    """One reply in the form of its endpoint: chunks as events come, the whole in the end."""

    kind, chunk = "text_completion", "text_completion"
    prefix = "cmpl"

    def __init__(self, model: str, piece: Piece | None) -> None:
        self._piece = piece
        self._told: Counter[int] = Counter()
        """characters of the tokens of each choice so far"""
        self._head = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "object": self.chunk,
            "created": int(time.time()),
            "model": model,
        }

    def first(self, index: int) -> list[dict[str, Any]]:
        """Choices that come before the first token."""
        return []

    def part(self, index: int, event: Event) -> dict[str, Any]:
        return {
            "index": index,
            "text": event.text,
            "logprobs": self._logprobs(index, event.tokens) if event.tokens else None,
            "finish_reason": event.finish or None,
        }

    def choice(self, index: int, event: Event) -> dict[str, Any]:
        return self.part(index, event)

    def _logprobs(self, index: int, tokens: Sequence[Chosen]) -> dict[str, Any]:
        texts = [self._text(token.id) for token in tokens]
        offsets = []
        for text in texts:
            offsets.append(self._told[index])
            self._told[index] += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [
                {self._text(i): value for i, value in reversed(token.top)}
                if token.logprob is not None else None
                for token in tokens
            ],
            "text_offset": offsets,
        }  # fmt: skip

    def data(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        """A chunk as a server-sent event."""
        body = json.dumps(self._head | {"choices": choices} | more, ensure_ascii=False)
        return f"data: {body}\n\n".encode("utf-8", "replace")

    def whole(self, choices: list[dict[str, Any]], use: dict[str, Any]) -> dict[str, Any]:
        return self._head | {"object": self.kind, "choices": choices, "usage": use}

    def _text(self, token: int) -> str:
        """As OpenAI writes tokens that are a part of a character."""
        data = self._piece(token) if self._piece else b""
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


class ChatShape(Shape):
    kind, chunk = "chat.completion", "chat.completion.chunk"
    prefix = "chatcmpl"

    def first(self, index: int) -> list[dict[str, Any]]:
        delta = {"role": "assistant", "content": ""}
        return [{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}]

    def part(self, index: int, event: Event) -> dict[str, Any]:
        return {
            "index": index,
            "delta": {"content": event.text} if event.text else {},
            "logprobs": self._logprobs(index, event.tokens) if event.tokens else None,
            "finish_reason": event.finish or None,
        }

    def choice(self, index: int, event: Event) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": event.text, "refusal": None},
            "logprobs": self._logprobs(index, event.tokens) if event.tokens else None,
            "finish_reason": event.finish,
        }

    def _logprobs(self, index: int, tokens: Sequence[Chosen]) -> dict[str, Any]:
        def one(token: int, value: float | None) -> dict[str, Any]:
            data = self._piece(token) if self._piece else b""
            return {"token": self._text(token), "logprob": value, "bytes": list(data)}

        return {
            "content": [
                one(token.id, token.logprob) | {"top_logprobs": [one(*best) for best in token.top]}
                for token in tokens
            ],
            "refusal": None,
        }


def together(events: Iterable[Event]) -> Event:
    """All events of one answer as one."""
    every = list(events)
    return Event(
        "".join(event.text for event in every),
        tuple(token for event in every for token in event.tokens),
        every[-1].finish,
        every[-1].error,
    )


def usage(jobs: Sequence[Job], prompts: int) -> dict[str, Any]:
    """`jobs` holds the answers to the first prompt first, and so on; a prompt counts once."""
    each = len(jobs) // prompts
    prompt = sum(len(job.want.ids) for job in jobs[::each])
    new = sum(job.new for job in jobs)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": {"cached_tokens": sum(job.reused for job in jobs[::each])},
    }
