"""The queue and the thread of the engines."""

from __future__ import annotations

import functools
import itertools
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from edgeft.errors import EdgeftError
from edgeft.runtimes.gguf import GGUFRuntime
from edgeft.runtimes.protocol import open_runtime
from edgeft.server.batching_engine import BatchingEngine
from edgeft.server.engine import Worker
from edgeft.server.jobs import Busy, GenerationRequest, Job, StreamDelta
from helpers.engines import answers, ids_of, open_engine, prompts


def test_a_full_queue_refuses_and_forgets_who_left(artifacts: dict[str, Path]) -> None:
    engine = open_engine(artifacts["f32"], slots=1, waiting=2)
    try:
        came: queue.SimpleQueue[StreamDelta] = queue.SimpleQueue()
        request = GenerationRequest(prompts(engine, 1)[0], 200, ignore_eos=True)
        jobs = [Job(request, came.put) for _ in range(3)]
        for job in jobs:
            engine.submit([job])
        with pytest.raises(Busy) as busy:
            engine.submit([Job(request, came.put)])
        assert 1 <= busy.value.seconds <= 60
        for job in jobs[1:]:
            job.cancel()
        until = time.perf_counter() + 10
        while engine.counts.waiting and time.perf_counter() < until:
            time.sleep(0.01)
        engine.submit([Job(replace(request, max_tokens=1), came.put)])
        jobs[0].cancel()
    finally:
        engine.close()
    assert engine.counts.running == engine.counts.waiting == 0


def test_a_step_goes_between_two_calls() -> None:
    """However many embeddings wait, the running answers flow on."""
    worker, order, wait = Worker(), list[str](), threading.Event()

    class Busy:
        busy = True

        def advance(self) -> None:
            order.append("step")

    def call(name: str) -> None:
        assert wait.wait(30)
        order.append(name)

    callers = [threading.Thread(target=worker.call, args=(functools.partial(call, name),))
               for name in "abc"]  # fmt: skip
    for caller in callers:
        caller.start()
    while len(worker._calls) < 2:
        time.sleep(0.001)
    worker.engines.append(Busy())  # type: ignore[arg-type]
    wait.set()
    for caller in callers:
        caller.join(30)
    worker.close()
    calls = [i for i, name in enumerate(order) if name != "step"]
    assert len(calls) == 3 and all(b - a > 1 for a, b in itertools.pairwise(calls)), order


def test_engines_share_one_thread_and_take_turns(artifacts: dict[str, Path]) -> None:
    worker, threads = Worker(), set()
    engines = []
    for quant in ("f32", "q8_0"):
        runtime = open_runtime(artifacts[quant], threads=1, context=256)
        assert isinstance(runtime, GGUFRuntime)
        engines.append(BatchingEngine(quant, runtime, 2, 8, worker))
    try:
        order: queue.SimpleQueue[int] = queue.SimpleQueue()

        def sink(number: int, event: StreamDelta) -> None:
            threads.add(threading.get_ident())
            order.put(-1 if event.finish_reason else number)

        for number, engine in enumerate(engines):
            request = GenerationRequest(prompts(engine, 1)[0], 100, ignore_eos=True)
            engine.submit([Job(request, functools.partial(sink, number))])
        seen: list[int] = []
        while seen.count(-1) < 2:
            seen.append(order.get(timeout=30))
        # Neither waits for the other to end.
        assert {0, 1} <= set(seen[: seen.index(-1)])
        assert len(threads) == 1
    finally:
        for engine in engines:
            engine.close()
        worker.close()


def test_an_error_of_the_engine_ends_what_runs_and_nothing_else(
    artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine(artifacts["f32"], slots=2)
    try:
        request = GenerationRequest(prompts(engine, 1)[0], 5, ignore_eos=True, logprobs=0)
        wanted = ids_of(answers(engine, [request])[0])
        step = engine._sequences.step

        def broken(tokens: Sequence[tuple[int, int]]) -> None:
            monkeypatch.setattr(engine._sequences, "step", step)
            raise EdgeftError("no memory")

        monkeypatch.setattr(engine._sequences, "step", broken)
        (events,) = answers(engine, [request])
        assert events[-1].finish_reason == "error" and "no memory" in str(events[-1].error)
        assert ids_of(answers(engine, [request])[0]) == wanted
    finally:
        engine.close()
