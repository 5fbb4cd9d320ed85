"""Takes an answer of chat completions, whole or in chunks; gives its parts one after the other.

Chunks of one answer mix reasoning, text and tool calls in one `delta`. Other APIs send them as parts
with a beginning and an end.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["reasoning", "text", "tool"]
Step = tuple[Literal["start", "delta", "stop"], "Part", str]
"""what happens to a part, and the text that a delta adds"""


@dataclass
class Part:
    """A stretch of an answer."""

    kind: Kind
    index: int
    """in the answer"""
    text: str = ""
    """of a tool call its arguments, as JSON"""
    name: str = ""
    """of a tool call"""
    call_id: str = ""
    """of a tool call"""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    logprobs: list[Any] = field(default_factory=list)
    """of a text: OpenAI's objects"""


@dataclass
class Answer:
    """What has come so far."""

    parts: list[Part] = field(default_factory=list)
    finish_reason: str = ""
    stop_text: str | None = None
    """the text of `stop` that ended it"""
    usage: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, Any] = field(default_factory=dict)
    model: str = ""
    _open: Part | None = None
    _call: int = -1
    """index of the open part among the tool calls"""

    @classmethod
    def of(cls, completion: dict[str, Any]) -> Answer:
        """Of a whole completion of a chat or a text."""
        answer = cls()
        choice = completion["choices"][0]
        message = choice.get("message") or {"content": choice.get("text")}
        calls = [call | {"index": i} for i, call in enumerate(message.get("tool_calls") or [])]
        chunk = completion | {"choices": [choice | {"delta": message | {"tool_calls": calls}}]}
        for _ in answer.push(chunk):
            pass
        for _ in answer.end():
            pass
        return answer

    def push(self, chunk: dict[str, Any]) -> Iterator[Step]:
        """What a chunk adds."""
        self.model = chunk.get("model", self.model)
        self.usage = chunk.get("usage") or self.usage
        self.timings = chunk.get("timings") or self.timings
        for choice in chunk.get("choices", []):
            delta = choice.get("delta") or {"content": choice.get("text")}
            if text := delta.get("reasoning_content"):
                yield from self._add("reasoning", text)
            if text := delta.get("content"):
                yield from self._add("text", text)
                self.parts[-1].logprobs += (choice.get("logprobs") or {}).get("content") or []
            for call in delta.get("tool_calls") or []:
                yield from self._add_call(call)
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            self.stop_text = choice.get("stop_reason") or self.stop_text

    def end(self) -> Iterator[Step]:
        """The end of the last part; an answer without any has an empty text."""
        if not self.parts:
            yield from self._start(Part("text", 0))
        yield from self._stop()

    def _add(self, kind: Kind, text: str) -> Iterator[Step]:
        if self._open is None or self._open.kind != kind:
            yield from self._start(Part(kind, len(self.parts)))
        yield from self._grow(text)

    def _add_call(self, call: dict[str, Any]) -> Iterator[Step]:
        index, function = call.get("index", 0), call.get("function") or {}
        if self._open is None or self._open.kind != "tool" or index != self._call:
            part = Part("tool", len(self.parts), name=function.get("name") or "")
            part.call_id = call.get("id") or f"call_{part.id}"
            yield from self._start(part)
            self._call = index
        if arguments := function.get("arguments"):
            yield from self._grow(arguments)

    def _start(self, part: Part) -> Iterator[Step]:
        yield from self._stop()
        self.parts.append(part)
        self._open = part
        yield "start", part, ""

    def _grow(self, text: str) -> Iterator[Step]:
        part = self.parts[-1]
        part.text += text
        yield "delta", part, text

    def _stop(self) -> Iterator[Step]:
        if self._open:
            yield "stop", self._open, ""
            self._open = None

    def message(self) -> dict[str, Any]:
        """The answer as a message of chat completions."""
        texts = {
            kind: "".join(part.text for part in self.parts if part.kind == kind)
            for kind in ("reasoning", "text")
        }
        calls = [
            {
                "id": part.call_id,
                "type": "function",
                "function": {"name": part.name, "arguments": part.text or "{}"},
            }
            for part in self.parts
            if part.kind == "tool"
        ]
        optional = {"reasoning_content": texts["reasoning"], "tool_calls": calls}
        message = {"role": "assistant", "content": texts["text"] or (None if calls else "")}
        return message | {name: value for name, value in optional.items() if value}
