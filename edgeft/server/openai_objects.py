"""Takes the deltas of an answer, gives OpenAI's objects: chunks of a stream, or the whole."""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from edgeft.server.jobs import Job, StreamDelta, TokenLogprob
from edgeft.tokenizer.answer_parts import AnswerForm
from edgeft.tokenizer.answer_stream import AnswerStream

Piece = Callable[[int], bytes]
"""token id -> its bytes"""


class CompletionObjects:
    """The objects of one reply of /v1/completions."""

    object, chunk_object = "text_completion", "text_completion"
    id_prefix = "cmpl"

    def __init__(self, model: str, piece: Piece | None, fingerprint: str | None = None) -> None:
        """`piece`: None where the engine gives no log probabilities. `fingerprint`: of what computes the
        answer."""
        self._piece = piece
        self._offsets: Counter[int] = Counter()
        """index of the choice -> characters of its tokens so far"""
        self._head = {
            "id": f"{self.id_prefix}-{uuid.uuid4().hex}",
            "object": self.chunk_object,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }

    def opening(self, index: int) -> list[dict[str, Any]]:
        """Choices of the chunk that comes before the first token."""
        return []

    def empty_choice(self, index: int) -> dict[str, Any]:
        """Of a chunk that adds nothing to the answer."""
        return {"index": index, "text": "", "logprobs": None, "finish_reason": None}

    def chunk_choice(self, index: int, delta: StreamDelta) -> dict[str, Any] | None:
        """None: nothing of it can be sent yet."""
        return self.choice(index, delta)

    def choice(self, index: int, delta: StreamDelta) -> dict[str, Any]:
        return {
            "index": index,
            "text": delta.text,
            "logprobs": self._logprobs(index, delta.logprobs) if delta.logprobs else None,
            "finish_reason": delta.finish_reason or None,
            **_stop_reason(delta),
        }

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return self._head | {"choices": choices} | more

    def whole(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return self._head | {"object": self.object, "choices": choices} | more

    def _logprobs(self, index: int, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        texts = [self._text(token.id) for token in tokens]
        offsets = []
        for text in texts:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(text)

        def top(token: TokenLogprob) -> dict[str, float] | None:
            if token.logprob is None:
                return None
            # With the chosen token, as OpenAI has it. Of tokens with the same text, the likeliest is kept.
            ranked = [*token.top, (token.id, token.logprob)]
            return {self._text(i): value for i, value in reversed(ranked)}

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
        fingerprint: str | None = None,
        form: AnswerForm | None = None,
        has_functions: bool = False,
    ) -> None:
        """`form`: how the answers are split. `has_functions`: they call in OpenAI's older way."""
        super().__init__(model, piece, fingerprint)
        self._form, self._has_functions = form or AnswerForm(), has_functions
        self._streams: dict[int, AnswerStream] = {}
        """index of the choice -> its answer so far"""

    def opening(self, index: int) -> list[dict[str, Any]]:
        return [self.empty_choice(index) | {"delta": {"role": "assistant", "content": ""}}]

    def empty_choice(self, index: int) -> dict[str, Any]:
        return {"index": index, "delta": {}, "logprobs": None, "finish_reason": None}

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
            **_stop_reason(delta),
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
            **_stop_reason(delta),
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


def _stop_reason(delta: StreamDelta) -> dict[str, str]:
    """vLLM's field: the text of `stop` that ended an answer."""
    return {"stop_reason": delta.stop_text} if delta.stop_text else {}


def event(body: dict[str, Any]) -> bytes:
    """A server-sent event without a name."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n".encode("utf-8", "replace")


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
    return replace(
        every[-1],
        text="".join(delta.text for delta in every),
        logprobs=tuple(token for delta in every for token in delta.logprobs),
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


def timings(jobs: Sequence[Job]) -> dict[str, Any]:
    """How long the answer of one job took, or takes so far, in llama-server's terms; {} for several."""
    (job, *others) = jobs
    if others:
        return {}
    seconds = time.perf_counter() - job.created if job.seconds is None else job.seconds
    prompt_s = seconds if job.first_token_s is None else min(job.first_token_s, seconds)
    new_s = seconds - prompt_s
    read = len(job.request.prompt_ids) - job.cached_tokens
    steps = max(
        0, job.new_tokens - 1
    )  # the first token is chosen by what the prompt's last part gave
    drafts = {"draft_n": job.drafted_tokens, "draft_n_accepted": job.accepted_tokens}
    return {
        "cache_n": job.cached_tokens,
        "prompt_n": read,
        "prompt_ms": round(1000 * prompt_s, 3),
        "prompt_per_second": round(read / prompt_s, 3) if prompt_s else 0.0,
        "predicted_n": job.new_tokens,
        "predicted_ms": round(1000 * new_s, 3),
        "predicted_per_second": round(steps / new_s, 3) if new_s else 0.0,
        **(drafts if job.drafted_tokens else {}),
    }
