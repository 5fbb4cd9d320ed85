"""Deltas become OpenAI's objects."""

from __future__ import annotations

import json

import pytest

from edgeft.server.jobs import GenerationRequest, Job, StreamDelta, TokenLogprob
from edgeft.server.openai_objects import ChatObjects, CompletionObjects, joined, usage

pytestmark = pytest.mark.unit

PIECES = [b"a", "é".encode()[:1], b"bc"]


def test_deltas_are_joined() -> None:
    token = TokenLogprob(0, -1.0, [])
    deltas = [StreamDelta("a", (token,)), StreamDelta("b", (token,), "stop")]
    assert joined(deltas) == StreamDelta("ab", (token, token), "stop")
    assert deltas[0].followed_by(deltas[1]) == joined(deltas)


def test_a_prompt_of_several_answers_counts_once() -> None:
    jobs = [Job(GenerationRequest((1,) * n, 9), lambda delta: None) for n in (3, 3, 5, 5)]
    for job in jobs:
        job.new_tokens, job.cached_tokens = 2, 1
    counts = usage(jobs, prompts=2)
    assert (counts["prompt_tokens"], counts["completion_tokens"]) == (8, 8)
    assert counts["prompt_tokens_details"] == {"cached_tokens": 2}


def test_log_probabilities_of_completions() -> None:
    objects = CompletionObjects("m", PIECES.__getitem__)
    tokens = (TokenLogprob(2, None, []), TokenLogprob(1, -2.0, [(0, -1.0), (1, -2.0)]))
    first = objects.chunk_choice(0, StreamDelta("bc", tokens))["logprobs"]
    assert first["tokens"] == ["bc", r"bytes:\xc3"] and first["token_logprobs"] == [None, -2.0]
    assert first["top_logprobs"] == [None, {"a": -1.0, r"bytes:\xc3": -2.0}]
    later = objects.chunk_choice(0, StreamDelta("a", (TokenLogprob(0, -1.0, []),)))["logprobs"]
    assert first["text_offset"] == [0, 2] and later["text_offset"] == [12]


def test_chunks_of_a_chat() -> None:
    objects = ChatObjects("m", PIECES.__getitem__)
    assert objects.opening(1)[0]["delta"] == {"role": "assistant", "content": ""}
    event = objects.chunk([objects.chunk_choice(1, StreamDelta("é", (), "stop"))])
    chunk = json.loads(event.removeprefix(b"data: "))
    assert chunk["object"] == "chat.completion.chunk" and event.endswith(b"\n\n")
    assert chunk["choices"] == [
        {"index": 1, "delta": {"content": "é"}, "logprobs": None, "finish_reason": "stop"}
    ]
