"""OpenAI's Responses API: /v1/responses.

The form of requests, answers and events: https://developers.openai.com/api/reference/resources/responses
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field

from edgeft.server.responses import Refusal
from edgeft.server.schemas import MAX_MESSAGES, MAX_TOP_LOGPROBS, Body, Text
from edgeft.server.shims.answer import Answer, Part
from edgeft.server.shims.shim import Event, Shim, ShimBody, function_tool, unsupported
from edgeft.server.shims.stored_responses import StoredResponses

UNSUPPORTED = ("background", "conversation", "prompt", "context_management")
"""fields that would change the answer"""
TEXT_PARTS = ("input_text", "output_text", "text")
PREFIX = {"reasoning": "rs", "text": "msg", "tool": "fc"}
"""kind of a part -> beginning of its id"""


class TextOptions(Body):
    format: dict[str, Any] | None = None


class Reasoning(Body):
    effort: Text | None = None


class Responses(ShimBody):
    """The body of /v1/responses."""

    model: Text | None = None
    input: Text | Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_MESSAGES)]
    instructions: Text | None = None
    previous_response_id: Text | None = None
    store: bool | None = True
    stream: bool | None = False
    stream_options: dict[str, Any] | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Text | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    include: list[Text] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    metadata: dict[str, Any] | None = None
    user: Text | None = None


class ResponsesShim(Shim):
    def __init__(self, body: Responses, stored: StoredResponses) -> None:
        """Refusal for a `previous_response_id` that `stored` does not hold."""
        self._body, self._stored = body, stored
        self._messages = _earlier(body, stored) + _messages(body.input)
        """the conversation, without instructions"""
        effort = body.reasoning.effort if body.reasoning else None
        thinking = None if effort is None else effort != "none"
        super().__init__(_openai(body, self._messages), thinking)
        self._id = f"resp_{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._number = 0
        """of the next event"""

    def whole(self, answer: Answer) -> dict[str, Any]:
        is_whole = answer.finish_reason != "length"
        status = "completed" if is_whole else "incomplete"
        output = [_item(part, status) for part in answer.parts]
        details = None if is_whole else {"reason": "max_output_tokens"}
        response = self._response(answer, status, output) | {"incomplete_details": details}
        if self._body.store is not False:
            self._stored.add(response, [*self._messages, answer.message()])
        return response

    def opening(self, answer: Answer) -> Iterator[Event]:
        response = self._response(answer, "in_progress", []) | {"usage": None}
        for kind in ("created", "in_progress"):
            yield self._event(f"response.{kind}", response=response)

    def start(self, part: Part) -> Iterator[Event]:
        empty = Part(part.kind, part.index, "", part.name, part.call_id, part.id)
        item = _item(empty, "in_progress")
        if part.kind != "tool":
            item["content"] = []
        yield self._event("response.output_item.added", output_index=part.index, item=item)
        if part.kind == "text":
            yield self._in_text("response.content_part.added", part, part=_text(empty))

    def delta(self, part: Part, text: str) -> Iterator[Event]:
        if part.kind == "text":
            yield self._in_text("response.output_text.delta", part, delta=text, logprobs=[])
        elif part.kind == "reasoning":
            yield self._in_text("response.reasoning_text.delta", part, delta=text)
        else:
            yield self._in_item("response.function_call_arguments.delta", part, delta=text)

    def stop(self, part: Part) -> Iterator[Event]:
        if part.kind == "text":
            done = _text(part)
            logprobs = done["logprobs"]
            yield self._in_text(
                "response.output_text.done", part, text=part.text, logprobs=logprobs
            )
            yield self._in_text("response.content_part.done", part, part=done)
        elif part.kind == "reasoning":
            yield self._in_text("response.reasoning_text.done", part, text=part.text)
        else:
            done = {"name": part.name, "arguments": part.text or "{}"}
            yield self._in_item("response.function_call_arguments.done", part, **done)
        item = _item(part, "completed")
        yield self._event("response.output_item.done", output_index=part.index, item=item)

    def closing(self, answer: Answer) -> Iterator[Event]:
        response = self.whole(answer)
        yield self._event(f"response.{response['status']}", response=response)

    def failed(self, error: dict[str, Any], answer: Answer) -> Iterator[Event]:
        output = [_item(part, "incomplete") for part in answer.parts]
        response = self._response(answer, "failed", output)
        response["error"] = {"code": "server_error", "message": error["message"]}
        yield self._event("response.failed", response=response)

    def _event(self, kind: str, **fields: Any) -> Event:
        number = self._number
        self._number += 1
        return {"type": kind, "sequence_number": number, **fields}

    def _in_item(self, kind: str, part: Part, /, **fields: Any) -> Event:
        return self._event(kind, item_id=_item_id(part), output_index=part.index, **fields)

    def _in_text(self, kind: str, part: Part, /, **fields: Any) -> Event:
        return self._in_item(kind, part, content_index=0, **fields)

    def _response(
        self, answer: Answer, status: str, output: list[dict[str, Any]]
    ) -> dict[str, Any]:
        body = self._body
        form = body.text.format if body.text else None
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": answer.model,
            "output": output,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": body.reasoning and body.reasoning.effort, "summary": None},
            "service_tier": "default",
            "store": body.store is not False,
            "temperature": body.temperature or 0.0,
            "text": {"format": form or {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": _usage(answer),
            "user": body.user,
        }


def _usage(answer: Answer) -> dict[str, Any]:
    usage = answer.usage
    details = usage.get("completion_tokens_details") or {}
    return {
        "input_tokens": usage.get("prompt_tokens", 0),
        "input_tokens_details": usage.get("prompt_tokens_details", {"cached_tokens": 0}),
        "output_tokens": usage.get("completion_tokens", 0),
        "output_tokens_details": {"reasoning_tokens": details.get("reasoning_tokens", 0)},
        "total_tokens": usage.get("total_tokens", 0),
    }


def _item_id(part: Part) -> str:
    return f"{PREFIX[part.kind]}_{part.id}"


def _text(part: Part) -> dict[str, Any]:
    return {"type": "output_text", "text": part.text, "annotations": [], "logprobs": part.logprobs}


def _item(part: Part, status: str) -> dict[str, Any]:
    """A part as an item of the output."""
    item = {"id": _item_id(part), "status": status}
    if part.kind == "tool":
        call = {"call_id": part.call_id, "name": part.name, "arguments": part.text}
        return item | {"type": "function_call", **call}
    if part.kind == "reasoning":
        content = [{"type": "reasoning_text", "text": part.text}]
        return item | {"type": "reasoning", "summary": [], "content": content}
    return item | {"type": "message", "role": "assistant", "content": [_text(part)]}


def _earlier(body: Responses, stored: StoredResponses) -> list[dict[str, Any]]:
    if not body.previous_response_id:
        return []
    messages = stored.messages(body.previous_response_id)
    if messages is None:
        message = f"no response {body.previous_response_id[:64]!r}: unknown, or forgotten"
        raise Refusal(400, message, "previous_response_not_found")
    return messages


def _openai(body: Responses, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The body of chat completions."""
    extra = body.model_extra or {}
    for name in UNSUPPORTED:
        if extra.get(name):
            raise unsupported(name)
    if body.instructions:
        messages = [{"role": "system", "content": body.instructions}, *messages]
    openai = dict(extra) | {
        "messages": messages,
        "model": body.model,
        "stream": body.stream,
        "max_completion_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "parallel_tool_calls": body.parallel_tool_calls,
    }
    if body.top_logprobs or "message.output_text.logprobs" in (body.include or ()):
        openai |= {"logprobs": True, "top_logprobs": body.top_logprobs or 0}
    if body.text and body.text.format:
        openai["response_format"] = _response_format(body.text.format)
    if body.tools:
        openai["tools"] = list(map(_tool, body.tools))
    if body.tool_choice:
        openai["tool_choice"] = _tool_choice(body.tool_choice)
    return openai


def _messages(items: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Items of an input -> messages. What belongs to one turn of the assistant becomes one message."""
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    messages: list[dict[str, Any]] = []

    def turn() -> dict[str, Any]:
        """The assistant's, to add to."""
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": None})
        return messages[-1]

    for item in items:
        match item.get("type", "message"):
            case "message":
                role, content = item.get("role"), _content(item.get("content"))
                is_begun = messages and messages[-1].keys() == {
                    "role",
                    "content",
                    "reasoning_content",
                }
                if role == "assistant" and is_begun and messages[-1]["content"] is None:
                    messages[-1]["content"] = content
                else:
                    messages.append({"role": role, "content": content})
            case "reasoning":
                texts = (
                    part.get("text") for part in item.get("content") or () if isinstance(part, dict)
                )
                if thoughts := "".join(filter(None, texts)):
                    messages.append(
                        {"role": "assistant", "content": None, "reasoning_content": thoughts}
                    )
            case "function_call":
                function = {"name": item.get("name"), "arguments": item.get("arguments")}
                call = {"id": item.get("call_id"), "type": "function", "function": function}
                turn().setdefault("tool_calls", []).append(call)
            case "function_call_output":
                content = _content(item.get("output"))
                call_id = item.get("call_id")
                messages.append({"role": "tool", "tool_call_id": call_id, "content": content})
            case kind:
                raise unsupported(f"an input of the type {kind!r}")
    return messages


def _content(content: Any) -> Any:
    """Parts of an item -> parts of a message; those of other types are refused with the chat's."""
    if not isinstance(content, list):
        return content
    return [
        part | {"type": "text"}
        if isinstance(part, dict) and part.get("type") in TEXT_PARTS
        else part
        for part in content
    ]


def _response_format(form: dict[str, Any]) -> dict[str, Any]:
    if form.get("type") != "json_schema":
        return form
    named = {key: value for key, value in form.items() if key in ("name", "schema", "strict")}
    return {"type": "json_schema", "json_schema": named}


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise unsupported(f"the tool {tool.get('type')!r}")
    strict = tool.get("strict")
    return function_tool(
        tool.get("name"), tool.get("description"), tool.get("parameters"), strict=strict
    )


def _tool_choice(choice: str | dict[str, Any]) -> Any:
    if isinstance(choice, str):
        return choice
    if choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    raise unsupported(f"tool_choice {choice.get('type')!r}")
