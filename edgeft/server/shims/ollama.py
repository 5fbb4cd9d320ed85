"""Ollama's API: /api/chat, /api/generate and /api/embed, and the facts of /api/tags, /api/show and /api/version.

The form of requests and answers: https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field

from edgeft.server.engine import Engine
from edgeft.server.schemas import MAX_MESSAGES, Text
from edgeft.server.shims.answer import Answer, Part
from edgeft.server.shims.shim import Event, Shim, ShimBody, parsed_arguments, unsupported
from edgeft.tokenizer.tool_calls import call_format

API_VERSION = "0.9.0"
"""of Ollama, whose API this follows: some clients ask for a version"""
RENAMED = {"num_predict": "max_tokens", "num_keep": "n_keep"}
"""option -> the field of chat completions; the others have the same name, or change no answer"""
NS = 1e6
"""nanoseconds in a millisecond"""


class Generation(ShimBody):
    """The fields that both have."""

    model: Text
    stream: bool | None = True
    format: Text | dict[str, Any] | None = None
    options: dict[str, Any] | None = None
    think: bool | Text | None = None
    images: list[Any] | None = None


class Chat(Generation):
    """The body of /api/chat."""

    messages: Annotated[list[dict[str, Any]], Field(max_length=MAX_MESSAGES, default_factory=list)]


class Generate(Generation):
    """The body of /api/generate."""

    prompt: Text = ""
    system: Text | None = None
    suffix: Text | None = None
    template: Text | None = None
    context: list[int] | None = None
    raw: bool | None = False


class Show(ShimBody):
    """The body of /api/show."""

    model: Text | None = None
    name: Text | None = None


class Embed(ShimBody):
    """The body of /api/embed."""

    model: Text
    input: Text | list[Text]
    truncate: bool | None = True
    """a text beyond the context is cut off there, as Ollama does; otherwise it is refused"""
    dimensions: int | None = None
    options: dict[str, Any] | None = None


class OllamaShim(Shim):
    media_type = "application/x-ndjson"

    def __init__(self, body: Chat | Generate) -> None:
        self._is_chat = isinstance(body, Chat)
        self._model = body.model
        openai = _chat(body) if isinstance(body, Chat) else _generate(body)
        if "prompt" in openai:
            self.path = "/v1/completions"
        think = body.think
        super().__init__(openai, think if think is None else think not in (False, "none"))

    def whole(self, answer: Answer) -> dict[str, Any]:
        texts = {kind: "" for kind in ("text", "reasoning")}
        for part in answer.parts:
            if part.kind != "tool":
                texts[part.kind] += part.text
        calls = [_call(part) for part in answer.parts if part.kind == "tool"]
        return self._object(texts["text"], texts["reasoning"], calls) | _end(answer)

    def delta(self, part: Part, text: str) -> Iterator[Event]:
        if part.kind == "text":
            yield self._object(text) | {"done": False}
        elif part.kind == "reasoning":
            yield self._object("", text) | {"done": False}

    def stop(self, part: Part) -> Iterator[Event]:
        if part.kind == "tool":
            yield self._object("", calls=[_call(part)]) | {"done": False}

    def closing(self, answer: Answer) -> Iterator[Event]:
        yield self._object("") | _end(answer)

    def failed(self, error: dict[str, Any], answer: Answer) -> Iterator[Event]:
        yield error_body(error["message"])

    def encode(self, event: Event) -> bytes:
        return (json.dumps(event, ensure_ascii=False) + "\n").encode("utf-8", "replace")

    def _object(
        self, text: str, thinking: str = "", calls: list[dict[str, Any]] | None = None
    ) -> dict[str, Any]:
        head = {"model": self._model, "created_at": _time(datetime.datetime.now(datetime.UTC))}
        thought = {"thinking": thinking} if thinking else {}
        if not self._is_chat:
            return head | {"response": text, **thought}
        called = {"tool_calls": calls} if calls else {}
        return head | {"message": {"role": "assistant", "content": text, **thought, **called}}


def is_load(body: Chat | Generate) -> bool:
    """Whether a request asks for nothing but that the model is loaded."""
    return not (body.messages if isinstance(body, Chat) else body.prompt)


def loaded(body: Chat | Generate) -> dict[str, Any]:
    """The answer to a request that `is_load`."""
    return OllamaShim(body)._object("") | {"done": True, "done_reason": "load"}


def embedded(
    body: Embed, data: list[dict[str, Any]], tokens: int, seconds: float
) -> dict[str, Any]:
    """The answer to /api/embed. `data`: OpenAI's objects."""
    return {
        "model": body.model,
        "embeddings": [one["embedding"] for one in data],
        "total_duration": int(seconds * 1000 * NS),
        "load_duration": 0,
        "prompt_eval_count": tokens,
    }


def error_body(message: str) -> dict[str, Any]:
    """The JSON of an error."""
    return {"error": message}


def version() -> dict[str, Any]:
    return {"version": API_VERSION}


def tags(engines: list[Engine]) -> dict[str, Any]:
    """/api/tags: the served models."""
    return {"models": [_listed(engine) for engine in engines]}


def show(engine: Engine) -> dict[str, Any]:
    """/api/show: one model."""
    facts, chat = engine.facts, engine.runtime.chat
    stops = "\n".join(f"stop {json.dumps(stop)}" for stop in chat.stops)
    capabilities = {
        "completion": True,
        "tools": call_format(chat) is not None,
        "thinking": "enable_thinking" in chat.source,
    }
    return {
        "modelfile": f"FROM {facts.file}",
        "parameters": f"num_ctx {engine.runtime.context}\n{stops}",
        "template": chat.source,
        "details": _details(engine),
        "model_info": facts.metadata | {"general.parameter_count": facts.parameters},
        "capabilities": [name for name, has in capabilities.items() if has],
        "modified_at": _time(datetime.datetime.fromtimestamp(facts.modified, datetime.UTC)),
    }


def _listed(engine: Engine) -> dict[str, Any]:
    facts = engine.facts
    return {
        "name": engine.name,
        "model": engine.name,
        "modified_at": _time(datetime.datetime.fromtimestamp(facts.modified, datetime.UTC)),
        "size": facts.size,
        "digest": hashlib.sha256(facts.fingerprint.encode()).hexdigest(),
        "details": _details(engine),
    }


def _details(engine: Engine) -> dict[str, Any]:
    facts = engine.facts
    millions = facts.parameters / 1e6
    size = f"{millions / 1000:.1f}B" if millions >= 1000 else f"{millions:.1f}M"
    return {
        "parent_model": "",
        "format": facts.format,
        "family": facts.architecture,
        "families": [facts.architecture],
        "parameter_size": size if facts.parameters else "",
        "quantization_level": facts.quantization,
    }


def _time(moment: datetime.datetime) -> str:
    """RFC 3339."""
    return moment.isoformat().replace("+00:00", "Z")


def _call(part: Part) -> dict[str, Any]:
    return {"function": {"name": part.name, "arguments": parsed_arguments(part)}}


def _end(answer: Answer) -> dict[str, Any]:
    """Why it ended, tokens, and times in nanoseconds."""
    times = answer.timings
    prompt, new = times.get("prompt_ms", 0) * NS, times.get("predicted_ms", 0) * NS
    return {
        "done": True,
        "done_reason": "length" if answer.finish_reason == "length" else "stop",
        "total_duration": int(prompt + new),
        "load_duration": 0,
        "prompt_eval_count": answer.usage.get("prompt_tokens", 0),
        "prompt_eval_duration": int(prompt),
        "eval_count": answer.usage.get("completion_tokens", 0),
        "eval_duration": int(new),
    }


def _common(body: Generation) -> dict[str, Any]:
    """The fields of both in OpenAI's form."""
    if body.images:
        raise unsupported("images")
    options = {RENAMED.get(name, name): value for name, value in (body.options or {}).items()}
    if options.get("max_tokens") == -2:  # to the end of the context
        options["max_tokens"] = -1
    openai = dict(body.model_extra or {}) | options
    openai |= {"model": body.model.removesuffix(":latest"), "stream": body.stream is not False}
    if isinstance(body.format, dict):
        schema = {"name": "format", "schema": body.format}
        openai["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif body.format == "json":
        openai["response_format"] = {"type": "json_object"}
    elif body.format:
        raise unsupported(f"format {body.format!r}")
    return openai


def _chat(body: Chat) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    unanswered: list[tuple[Any, str]] = []
    """(name, id) of calls without a result; Ollama's have no ids, and results come in their order"""
    for number, message in enumerate(body.messages):
        if message.get("images"):
            raise unsupported("images")
        converted = {"role": message.get("role"), "content": message.get("content", "")}
        if thinking := message.get("thinking"):
            converted["reasoning_content"] = thinking
        if message.get("role") == "tool":
            name = message.get("tool_name") or message.get("name")
            same = [call for call in unanswered if call[0] == name] or list(unanswered)
            converted["tool_call_id"] = same[0][1] if same else f"call_{number}"
            if same:
                unanswered.remove(same[0])
        elif calls := message.get("tool_calls"):
            converted["tool_calls"] = _openai_calls(calls, number)
            unanswered = [(one["function"]["name"], one["id"]) for one in converted["tool_calls"]]
        messages.append(converted)
    return _common(body) | {"messages": messages}


def _openai_calls(calls: Any, number: int) -> list[dict[str, Any]]:
    """Tool calls of the message with this number."""
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise unsupported("a tool call that is no object")
    converted = []
    for index, call in enumerate(calls):
        function = call.get("function")
        if not isinstance(function, dict):
            raise unsupported("a tool call without a function")
        arguments = json.dumps(function.get("arguments") or {})
        named = {"name": function.get("name"), "arguments": arguments}
        call_id = f"call_{number}_{index}"
        converted.append({"id": call_id, "type": "function", "function": named})
    return converted


def _generate(body: Generate) -> dict[str, Any]:
    for name in ("suffix", "template", "context"):
        if getattr(body, name):
            raise unsupported(name)
    if body.raw:
        openai = _common(body)
        return {"max_tokens": -1} | openai | {"prompt": body.prompt}
    system = [{"role": "system", "content": body.system}] if body.system else []
    return _common(body) | {"messages": [*system, {"role": "user", "content": body.prompt}]}
