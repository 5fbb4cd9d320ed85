"""Deltas become OpenAI's objects."""

from __future__ import annotations

import json

import pytest

from edgeft.server.jobs import GenerationRequest, Job, StreamDelta, TokenLogprob
from edgeft.server.openai_objects import (
    ChatObjects,
    CompletionObjects,
    event,
    joined,
    timings,
    usage,
)

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
    assert later["top_logprobs"] == [{"a": -1.0}], "the chosen token is always there"


def test_chunks_of_a_chat() -> None:
    objects = ChatObjects("m", PIECES.__getitem__)
    assert objects.opening(1)[0]["delta"] == {"role": "assistant", "content": ""}
    chunk = objects.chunk([objects.chunk_choice(1, StreamDelta("é", (), "stop"))])
    assert chunk["object"] == "chat.completion.chunk"
    assert json.loads(event(chunk).removeprefix(b"data: ").removesuffix(b"\n\n")) == chunk
    assert chunk["choices"] == [
        {"index": 1, "delta": {"content": "é"}, "logprobs": None, "finish_reason": "stop"}
    ]


def test_every_object_names_what_computed_it() -> None:
    objects = ChatObjects("m", None, "fp_1")
    assert objects.whole([])["system_fingerprint"] == "fp_1"
    assert objects.chunk([])["system_fingerprint"] == "fp_1"


def test_times_of_one_answer() -> None:
    job = Job(GenerationRequest((1,) * 9, 9), lambda delta: None)
    so_far = timings([job])
    assert so_far["prompt_ms"] > 0 and so_far["predicted_n"] == 0, "it runs"
    assert so_far["predicted_per_second"] == 0.0
    job.first_token_s, job.seconds, job.new_tokens, job.cached_tokens = 0.5, 2.5, 4, 4
    assert timings([job]) == {
        "cache_n": 4, "prompt_n": 5, "prompt_ms": 500.0, "prompt_per_second": 10.0,
        "predicted_n": 4, "predicted_ms": 2000.0, "predicted_per_second": 1.5,
    }  # fmt: skip
    job.drafted_tokens, job.accepted_tokens = 6, 3
    assert timings([job]).items() >= {"draft_n": 6, "draft_n_accepted": 3}.items()
    assert timings([job, job]) == {}
