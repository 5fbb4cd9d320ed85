"""Takes the deltas of an answer, gives OpenAI's objects: chunks of a stream, or the whole."""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from edgeft.server.jobs import Job, StreamDelta, TokenLogprob
from edgeft.tokenizer.answer_parts import AnswerForm, AnswerStream

Piece = Callable[[int], bytes]
"""token id -> its bytes"""


class CompletionObjects:
    """The objects of one reply of /v1/completions."""

    object, chunk_object = "text_completion", "text_completion"
    id_prefix = "cmpl"

    def __init__(self, model: str, piece: Piece | None) -> None:
        """`piece`: None where the engine gives no log probabilities."""
        self._piece = piece
        self._offsets: Counter[int] = Counter()
        """index of the choice -> characters of its tokens so far"""
        self._head = {
            "id": f"{self.id_prefix}-{uuid.uuid4().hex}",
            "object": self.chunk_object,
            "created": int(time.time()),
            "model": model,
        }

    def opening(self, index: int) -> list[dict[str, Any]]:
        """Choices of the chunk that comes before the first token."""
        return []

    def chunk_choice(self, index: int, delta: StreamDelta) -> dict[str, Any] | None:
        """None: nothing of it can be sent yet."""
        return self.choice(index, delta)

    def choice(self, index: int, delta: StreamDelta) -> dict[str, Any]:
        return {
            "index": index,
            "text": delta.text,
            "logprobs": self._logprobs(index, delta.logprobs) if delta.logprobs else None,
            "finish_reason": delta.finish_reason or None,
        }

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        """A chunk as a server-sent event."""
        body = json.dumps(self._head | {"choices": choices} | more, ensure_ascii=False)
        return f"data: {body}\n\n".encode("utf-8", "replace")

    def whole(self, choices: list[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
        return self._head | {"object": self.object, "choices": choices, "usage": usage}

    def _logprobs(self, index: int, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        texts = [self._text(token.id) for token in tokens]
        offsets = []
        for text in texts:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(text)

        def top(token: TokenLogprob) -> dict[str, float] | None:
            if token.logprob is None:
                return None
            # Of several tokens with the same text, the likeliest is kept.
            return {self._text(i): value for i, value in reversed(token.top)}

        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": list(map(top, tokens)),
            "text_offset": offsets,
        }

    def _text(self, token: int) -> str:
        """A token's text; OpenAI writes a token that is a part of a character as its bytes."""
        data = self._piece(token) if self._piece else b""
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


class ChatObjects(CompletionObjects):
    """The objects of one reply of /v1/chat/completions."""

    object, chunk_object = "chat.completion", "chat.completion.chunk"
    id_prefix = "chatcmpl"

    def __init__(
        self,
        model: str,
        piece: Piece | None,
        form: AnswerForm | None = None,
        has_functions: bool = False,
    ) -> None:
        """`form`: how the answers are split. `has_functions`: they call in OpenAI's older way."""
        super().__init__(model, piece)
        self._form, self._has_functions = form or AnswerForm(), has_functions
        self._streams: dict[int, AnswerStream] = {}
        """index of the choice -> its answer so far"""

    def opening(self, index: int) -> list[dict[str, Any]]:
        delta = {"role": "assistant", "content": ""}
        return [{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}]

    def chunk_choice(self, index: int, delta: StreamDelta) -> dict[str, Any] | None:
        stream = self._streams.setdefault(index, AnswerStream(self._form))
        reasoning, content, calls = stream.push(delta.text, bool(delta.finish_reason))
        fields: dict[str, Any] = {"reasoning_content": reasoning, "content": content}
        fields = {key: text for key, text in fields.items() if text}
        if calls and self._has_functions:
            _, name, arguments = calls[0]
            fields["function_call"] = {"name": name} if name else {}
            fields["function_call"]["arguments"] = arguments
        elif calls:
            fields["tool_calls"] = [_call_delta(*call) for call in calls]
        if not (fields or delta.finish_reason or delta.logprobs):
            return None
        return {
            "index": index,
            "delta": fields,
            "logprobs": self._logprobs(index, delta.logprobs) if delta.logprobs else None,
            "finish_reason": self._finish_reason(delta, bool(stream.calls)) or None,
        }

    def choice(self, index: int, delta: StreamDelta) -> dict[str, Any]:
        parts = self._form.parts(delta.text)
        message: dict[str, Any] = {"role": "assistant", "content": parts.content, "refusal": None}
        if parts.reasoning:
            message["reasoning_content"] = parts.reasoning
        if parts.calls:
            message["content"] = parts.content or None
            if self._has_functions:
                call = parts.calls[0]
                message["function_call"] = {"name": call.name, "arguments": call.arguments}
            else:
                message["tool_calls"] = [_call(call.name, call.arguments) for call in parts.calls]
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(index, delta.logprobs) if delta.logprobs else None,
            "finish_reason": self._finish_reason(delta, bool(parts.calls)),
        }

    def _finish_reason(self, delta: StreamDelta, calls: bool) -> str:
        if delta.finish_reason == "stop" and calls:
            return "function_call" if self._has_functions else "tool_calls"
        return delta.finish_reason

    def _logprobs(self, index: int, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        def entry(token: int, logprob: float | None) -> dict[str, Any]:
            data = self._piece(token) if self._piece else b""
            return {"token": self._text(token), "logprob": logprob, "bytes": list(data)}

        return {
            "content": [
                entry(token.id, token.logprob)
                | {"top_logprobs": [entry(*other) for other in token.top]}
                for token in tokens
            ],
            "refusal": None,
        }


def _call(name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def _call_delta(index: int, name: str, arguments: str) -> dict[str, Any]:
    """A part of a call in a stream; only the first part has an id and a name."""
    if name:
        return {"index": index, **_call(name, arguments)}
    return {"index": index, "function": {"arguments": arguments}}


def joined(deltas: Iterable[StreamDelta]) -> StreamDelta:
    """All deltas of one answer as one."""
    every = list(deltas)
    return StreamDelta(
        "".join(delta.text for delta in every),
        tuple(token for delta in every for token in delta.logprobs),
        every[-1].finish_reason,
        every[-1].error,
    )


def usage(jobs: Sequence[Job], prompts: int) -> dict[str, Any]:
    """Token counts of a reply. `jobs` holds the answers to the first prompt first, and so on; a
    prompt counts once."""
    answers_per_prompt = len(jobs) // prompts
    of_each_prompt = jobs[::answers_per_prompt]
    prompt_tokens = sum(len(job.request.prompt_ids) for job in of_each_prompt)
    new_tokens = sum(job.new_tokens for job in jobs)
    cached_tokens = sum(job.cached_tokens for job in of_each_prompt)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": new_tokens,
        "total_tokens": prompt_tokens + new_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }
