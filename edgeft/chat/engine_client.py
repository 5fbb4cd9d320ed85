"""An artifact -> the `ChatModel` of a conversation, computed as `edgeft serve` computes it."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeft.chat.conversation import ChatModel
from edgeft.records import Limits, Token

if TYPE_CHECKING:
    from edgeft.server.engine import Engine

UNKNOWN_ID = -1
"""id of a token, where only its text is known"""


@contextlib.contextmanager
def open_model(
    path: Path,
    threads: int | None = None,
    context: int | None = None,
    exact: bool = False,
    batch_invariant: bool = True,
    kv_type: str = "f16",
) -> Iterator[ChatModel]:
    """Open an artifact for one conversation.

    llama.cpp's artifacts run in the server's engine, so that they answer the same here and there; others
    run in their runtime. `batch_invariant` and `kv_type` are options of `edgeft.server.options.ServeOptions`, the others are those
    of `edgeft.runtimes.protocol.open_runtime`.
    """
    from edgeft.formats import format_of, load
    from edgeft.runtimes.gguf import GGUFRuntime
    from edgeft.runtimes.protocol import open_runtime
    from edgeft.server.options import ServeOptions
    from edgeft.server.run import engines

    if exact or not issubclass(load(format_of(path).runtime), GGUFRuntime):
        with open_runtime(path, threads, context, exact, kv_type=kv_type) as runtime:
            yield runtime
        return
    options = ServeOptions((path,), slots=1, queue=8, threads=threads, context=context,
                           batch_invariant=batch_invariant, kv_type=kv_type)  # fmt: skip
    with engines(options) as (engine,):
        yield EngineClient(engine)


class EngineClient:
    """The only client of an engine, as a `ChatModel`."""

    def __init__(self, engine: Engine) -> None:
        runtime = engine.runtime
        self.chat, self.context, self.encode = runtime.chat, runtime.context, runtime.encode
        self._engine = engine

    def stream(self, ids: Sequence[int], limits: Limits) -> Iterator[Token]:
        from edgeft.server.jobs import GenerationRequest, Job, StreamDelta

        deltas: queue.SimpleQueue[tuple[StreamDelta, int, float]] = queue.SimpleQueue()

        def callback(delta: StreamDelta) -> None:  # in the engine's thread
            deltas.put((delta, job.new_tokens, time.perf_counter() - job.created))

        request = GenerationRequest(
            tuple(ids), limits.max_tokens, limits.sampling, ignore_eos=limits.ignore_eos
        )
        job = Job(request, callback)
        self._engine.submit([job])
        yielded, finish = 0, ""
        try:
            while not finish:
                delta, new, seconds = deltas.get()
                finish = delta.finish_reason
                if delta.error:
                    raise delta.error
                # The engine tells of a token when it completes some text.
                for text in [""] * (new - yielded - 1) + [delta.text] * (
                    new > yielded or bool(delta.text)
                ):
                    yield Token(UNKNOWN_ID, text, seconds)
                yielded = new
        finally:
            job.cancel()
