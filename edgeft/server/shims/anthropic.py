"""Anthropic's Messages API: /v1/messages and /v1/messages/count_tokens.

The form of requests, answers and events: https://platform.claude.com/docs/en/api/messages
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from edgeft.server.schemas import MAX_MESSAGES, Text
from edgeft.server.shims.answer import Answer, Part
from edgeft.server.shims.shim import (
    Event,
    Shim,
    ShimBody,
    function_tool,
    parsed_arguments,
    unsupported,
)

STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use"}
"""finish_reason of OpenAI -> stop_reason; the others are end_turn"""
ERROR_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error",
    413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error",
}  # fmt: skip
BLOCKS = {"text": "text", "thinking": "thinking", "tool_use": "partial_json"}
"""type of a block -> the field that a delta adds to"""
DELTAS = {"text": "text_delta", "thinking": "thinking_delta", "tool_use": "input_json_delta"}
Blocks = Text | list[dict[str, Any]]


class Turn(ShimBody):
    role: Literal["user", "assistant"]
    content: Blocks


class CountTokens(ShimBody):
    """The body of /v1/messages/count_tokens."""

    messages: Annotated[list[Turn], Field(min_length=1, max_length=MAX_MESSAGES)]
    system: Blocks | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    output_format: dict[str, Any] | None = None
    """the older place of `output_config.format`"""
    metadata: dict[str, Any] | None = None


class Messages(CountTokens):
    """The body of /v1/messages."""

    max_tokens: Annotated[int, Field(ge=1)]
    stop_sequences: list[Text] | None = None


class AnthropicShim(Shim):
    def __init__(self, body: CountTokens) -> None:
        thinking = (body.thinking or {}).get("type")
        super().__init__(_openai(body), None if thinking is None else thinking != "disabled")
        self._id = f"msg_{uuid.uuid4().hex}"

    def whole(self, answer: Answer) -> dict[str, Any]:
        content = [self._block(part, answer_is_whole=True) for part in answer.parts]
        return self._message(answer, content) | _end(answer) | {"usage": _usage(answer)}

    def opening(self, answer: Answer) -> Iterator[Event]:
        message = self._message(answer, []) | {"stop_reason": None, "stop_sequence": None}
        yield {"type": "message_start", "message": message | {"usage": _usage(answer)}}

    def start(self, part: Part) -> Iterator[Event]:
        block = self._block(part, answer_is_whole=False)
        yield {"type": "content_block_start", "index": part.index, "content_block": block}

    def delta(self, part: Part, text: str) -> Iterator[Event]:
        kind = _block_type(part)
        delta = {"type": DELTAS[kind], BLOCKS[kind]: text}
        yield {"type": "content_block_delta", "index": part.index, "delta": delta}

    def stop(self, part: Part) -> Iterator[Event]:
        if part.kind == "reasoning":  # clients wait for a signature, which only Anthropic can give
            signature = {"type": "signature_delta", "signature": ""}
            yield {"type": "content_block_delta", "index": part.index, "delta": signature}
        yield {"type": "content_block_stop", "index": part.index}

    def closing(self, answer: Answer) -> Iterator[Event]:
        yield {"type": "message_delta", "delta": _end(answer), "usage": _usage(answer)}
        yield {"type": "message_stop"}

    def failed(self, error: dict[str, Any], answer: Answer) -> Iterator[Event]:
        yield error_body(error["message"], 500)

    def _message(self, answer: Answer, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": answer.model,
            "content": content,
        }

    def _block(self, part: Part, answer_is_whole: bool) -> dict[str, Any]:
        """A content block, whose text comes later where the answer is not whole."""
        kind = _block_type(part)
        text = part.text if answer_is_whole else ""
        if kind == "tool_use":
            arguments = parsed_arguments(part) if answer_is_whole else {}
            return {"type": kind, "id": part.call_id, "name": part.name, "input": arguments}
        signature = {"signature": ""} if kind == "thinking" else {}
        return {"type": kind, BLOCKS[kind]: text, **signature}


def error_body(message: str, status: int) -> dict[str, Any]:
    """The JSON of an error."""
    kind = ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}}


def _block_type(part: Part) -> str:
    return {"reasoning": "thinking", "tool": "tool_use"}.get(part.kind, "text")


def _end(answer: Answer) -> dict[str, Any]:
    reason = STOP_REASONS.get(answer.finish_reason, "end_turn")
    if answer.stop_text and reason == "end_turn":
        reason = "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": answer.stop_text}


def _usage(answer: Answer) -> dict[str, int]:
    """Tokens; those of the prompt that were in the cache are counted apart."""
    cached = answer.usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)
    return {
        "input_tokens": answer.usage.get("prompt_tokens", 0) - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": answer.usage.get("completion_tokens", 0),
    }


def _openai(body: CountTokens) -> dict[str, Any]:
    """The body of chat completions."""
    messages: list[dict[str, Any]] = []
    if body.system:
        messages.append({"role": "system", "content": body.system})
    for turn in body.messages:
        messages += _messages(turn)
    openai = dict(body.model_extra or {}) | {"messages": messages}
    if isinstance(body, Messages):
        openai |= {"max_tokens": body.max_tokens, "stop": body.stop_sequences}
    if body.tools:
        openai["tools"] = list(map(_tool, body.tools))
    if choice := body.tool_choice:
        openai |= _tool_choice(choice)
    form = (body.output_config or {}).get("format") or body.output_format
    if form:
        schema = {"name": "output", "schema": form.get("schema")}
        openai["response_format"] = {"type": form.get("type"), "json_schema": schema}
    return openai


def _messages(turn: Turn) -> Iterator[dict[str, Any]]:
    """A turn -> the results of tools, each a message, and then what was said."""
    if isinstance(turn.content, str):
        yield {"role": turn.role, "content": turn.content}
        return
    said: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    thoughts = ""
    for block in turn.content:
        match block.get("type"):
            case "tool_result":
                content = block.get("content", "")
                yield {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": content}
            case "tool_use":
                function = {"name": block.get("name"), "arguments": json.dumps(block.get("input"))}
                calls.append({"id": block.get("id"), "type": "function", "function": function})
            case "thinking":
                thoughts += str(block.get("thinking", ""))
            case "redacted_thinking":
                raise unsupported("redacted_thinking, which only its author can read,")
            case _:  # other types are refused with those of chat completions
                said.append(block)
    if said or calls or thoughts:
        optional = {"tool_calls": calls, "reasoning_content": thoughts}
        message = {"role": turn.role, "content": said or None}
        yield message | {name: value for name, value in optional.items() if value}


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") not in (None, "custom"):
        raise unsupported(f"the tool {tool['type']}")
    return function_tool(tool.get("name"), tool.get("description"), tool.get("input_schema"))


def _tool_choice(choice: dict[str, Any]) -> dict[str, Any]:
    kind = choice.get("type")
    choices = {
        "auto": "auto",
        "any": "required",
        "none": "none",
        "tool": {"type": "function", "function": {"name": choice.get("name")}},
    }
    if not isinstance(kind, str) or kind not in choices:
        raise unsupported(f"tool_choice {kind!r}")
    parallel = {"parallel_tool_calls": False} if choice.get("disable_parallel_tool_use") else {}
    return {"tool_choice": choices[kind], **parallel}
