"""Engines without HTTP: open one, give it requests, read the answers."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from pathlib import Path

from edgeft.runtimes.draft_model import DraftModel
from edgeft.runtimes.gguf import GGUFRuntime
from edgeft.runtimes.protocol import open_runtime
from edgeft.server.batching_engine import BatchingEngine
from edgeft.server.engine import Engine, Worker
from edgeft.server.jobs import GenerationRequest, Job, StreamDelta, TokenLogprob


def open_engine(
    path: Path,
    slots: int = 4,
    waiting: int = 8,
    isolated: bool = True,
    context: int = 256,
    kv_type: str = "f16",
    speculate: bool = False,
    draft: Path | None = None,
) -> BatchingEngine:
    runtime = open_runtime(
        path, threads=1, context=context, kv_type=kv_type, batch_invariant=isolated
    )
    assert isinstance(runtime, GGUFRuntime)
    worker = Worker()
    model = None
    if draft:
        small = open_runtime(draft, threads=1, context=context)
        assert isinstance(small, GGUFRuntime)
        model = worker.call(lambda: DraftModel(small, runtime))
    return BatchingEngine(
        path.stem, runtime, slots, waiting, worker, isolated, speculate=speculate, draft_model=model
    )


def answers(engine: Engine, requests: Sequence[GenerationRequest]) -> list[list[StreamDelta]]:
    """All at once; the events of each."""
    came: queue.SimpleQueue[tuple[int, StreamDelta]] = queue.SimpleQueue()
    jobs = [Job(w, lambda event, i=i: came.put((i, event))) for i, w in enumerate(requests)]  # type: ignore[misc]
    engine.submit(jobs)
    events: list[list[StreamDelta]] = [[] for _ in requests]
    left = len(requests)
    while left:
        index, event = came.get(timeout=300)  # long prompts of real models on a busy machine
        events[index].append(event)
        left -= bool(event.finish_reason)
    return events


def ids_of(events: Sequence[StreamDelta]) -> list[int]:
    return [token.id for event in events for token in event.logprobs]


def tokens_of(events: Sequence[StreamDelta]) -> list[TokenLogprob]:
    return [token for event in events for token in event.logprobs]


def text_of(events: Sequence[StreamDelta]) -> str:
    return "".join(event.text for event in events)


def prompts(engine: Engine, count: int) -> list[tuple[int, ...]]:
    """Of different lengths, some with the same beginning."""
    texts = [f"{'the lamp on ' * (i % 3)}{i} {'é' * (i * 17 % 60)} thing" for i in range(count)]
    return [tuple(engine.runtime.encode(text)) for text in texts]
