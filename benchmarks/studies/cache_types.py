"""An artifact and chats -> speed, answers and KL divergence by type of the cache, and of speculation.

    python -m edgeft.benchmarks.studies.cache_types q4_k_m.gguf test.jsonl --items 40 --threads 2

Each row is the server's engine with one slot, isolated, without HTTP: a type of the cache without and, where
it is possible, with speculation by n-grams. All engines compute in one thread, and every chat is
answered by all of them in turn, so that the rows share the machine's noise. An answer is right where it is the
chat's last message. KL: of the next tokens' probabilities over that message, to those of f16, in nats.
`same`: answers that are those of the row without speculation, bit for bit, which is all of them or a
defect. Every row opens the artifact, so weights in q4_0 are in memory
as often as there are rows. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft import machine
from edgeft.errors import EdgeftError, InputError
from edgeft.files import format_bytes
from edgeft.kv_cache import KV_TYPES
from edgeft.records import Message
from edgeft.report import tables
from edgeft.runtimes.gguf import GGUFRuntime
from edgeft.runtimes.protocol import open_runtime
from edgeft.server.batching_engine import BatchingEngine
from edgeft.server.engine import Worker
from edgeft.server.jobs import GenerationRequest, Job, StreamDelta


@dataclass
class Row:
    """What one engine did."""

    kv_type: str
    speculates: bool
    cache_bytes: int = 0
    """of 1,000 tokens"""
    seconds: float = 0.0
    """from the first to the last token of all answers"""
    prompt_seconds: float = 0.0
    prompt_tokens: int = 0
    answers: list[list[int]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    accepted: float = 0.0
    """share of the guessed tokens"""
    kl: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        after_the_first = sum(max(0, len(answer) - 1) for answer in self.answers)
        return after_the_first / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Chat:
    prompt: list[int]
    answer: list[int]
    text: str


def read_chats(path: Path, items: int, runtime: GGUFRuntime, instructions: str) -> list[Chat]:
    chats = []
    for line in path.read_text(encoding="utf-8").splitlines()[:items]:
        messages = [Message(m["role"], m["content"]) for m in json.loads(line)["messages"]]
        if instructions:
            messages.insert(0, Message("system", instructions))
        text = messages[-1].content
        prompt = runtime.encode(runtime.chat.render(messages[:-1]))
        chats.append(Chat(prompt, runtime.encode(text), text))
    return chats


def answer(
    engine: BatchingEngine, row: Row, chat: Chat, tokens: int, ignore_eos: bool = False
) -> None:
    """One greedy answer, timed."""
    came: queue.SimpleQueue[tuple[float, StreamDelta]] = queue.SimpleQueue()
    request = GenerationRequest(tuple(chat.prompt), tokens, logprobs=0, ignore_eos=ignore_eos)
    job = Job(request, lambda delta: came.put((time.perf_counter(), delta)))
    started = time.perf_counter()
    engine.submit([job])
    ids: list[int] = []
    text, first = "", 0.0
    while True:
        at, delta = came.get(timeout=600)
        first = first or at
        ids += [token.id for token in delta.logprobs]
        text += delta.text
        if delta.finish_reason:
            break
    row.seconds += at - first
    row.prompt_seconds += first - started
    row.prompt_tokens += len(chat.prompt) - job.cached_tokens
    row.answers.append(ids)
    row.texts.append(text)


def divergence(rows: npt.NDArray[np.float32], others: npt.NDArray[np.float32]) -> float:
    """Mean KL divergence of the distributions of `others` from those of `rows`, nats."""

    def log_probabilities(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        values = logits.astype(np.float64)
        values -= values.max(axis=1, keepdims=True)
        normalized: npt.NDArray[np.float64] = values - np.log(
            np.exp(values).sum(axis=1, keepdims=True)
        )
        return normalized

    p, q = log_probabilities(rows), log_probabilities(others)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def measure_kl(artifact: Path, chats: Sequence[Chat], threads: int, rows: Sequence[Row]) -> None:
    baseline: list[npt.NDArray[np.float32]] = []
    by_type: dict[str, float] = {}
    for kv_type in dict.fromkeys(row.kv_type for row in rows):
        with open_runtime(artifact, threads, kv_type=kv_type) as runtime:
            logits = [runtime.logits([*c.prompt, *c.answer], len(c.answer)).copy() for c in chats]
        baseline = baseline or logits
        by_type[kv_type] = float(np.mean([*map(divergence, baseline, logits)]))
    for row in rows:
        row.kl = by_type[row.kv_type]


def run(
    artifact: Path, chats_file: Path, items: int, tokens: int, threads: int, instructions: str = ""
) -> tuple[list[Row], list[Chat]]:
    worker = Worker()
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        stack.callback(worker.close)
        engines: list[BatchingEngine] = []
        for kv_type in KV_TYPES:
            for speculates in (False, True):
                runtime = open_runtime(artifact, threads, kv_type=kv_type, batch_invariant=True)
                if not isinstance(runtime, GGUFRuntime):
                    raise InputError(f"{artifact} does not run on llama.cpp")
                try:
                    engine = BatchingEngine(kv_type, runtime, 1, 1, worker, speculate=speculates)
                except InputError:  # no speculation with this type
                    worker.call(runtime.close)
                    continue
                stack.callback(engine.close)
                engines.append(engine)
                cache = runtime._model.cache_bytes(1000)
                rows.append(Row(kv_type, speculates, cache))
        first = engines[0].runtime
        chats = read_chats(chats_file, items, first, instructions)  # type: ignore[arg-type]
        for number, chat in enumerate(chats):
            turn = number % len(engines)
            for i in [*range(turn, len(engines)), *range(turn)]:
                answer(engines[i], rows[i], chat, tokens)
        for engine, row in zip(engines, rows, strict=True):
            counts = engine.counts
            row.accepted = counts.accepted_tokens / max(1, counts.drafted_tokens)
    measure_kl(artifact, chats, threads, rows)
    return rows, chats


def table(rows: Sequence[Row], chats: Sequence[Chat]) -> str:
    head = ["cache", "1,000 tokens", "speculation", "tokens/s", "of f16", "guesses right",
            "prompt tokens/s", "right answers", "as f16", "same", "KL"]  # fmt: skip
    body = []
    plain = {row.kv_type: row for row in rows if not row.speculates}
    for row in rows:
        right = sum(
            t.strip() == chat.text.strip() for t, chat in zip(row.texts, chats, strict=True)
        )
        as_f16 = sum(a == b for a, b in zip(row.answers, rows[0].answers, strict=True))
        same = sum(a == b for a, b in zip(row.answers, plain[row.kv_type].answers, strict=True))
        body.append([
            row.kv_type, format_bytes(row.cache_bytes), "ngram" if row.speculates else "none",
            f"{row.tokens_per_second:.1f}",
            f"{row.tokens_per_second / rows[0].tokens_per_second:.2f}",
            f"{row.accepted:.0%}" if row.speculates else "",
            f"{row.prompt_tokens / row.prompt_seconds:.0f}",
            f"{right} of {len(chats)}", f"{as_f16} of {len(chats)}", f"{same} of {len(chats)}",
            f"{row.kl:.2g}",
        ])  # fmt: skip
    return tables.table(head, body)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("chats", type=Path, help="rows of messages, the last one is the answer")
    parser.add_argument("--items", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=160, help="of an answer at most")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--instructions", default="", help="system message of every chat")
    chosen = parser.parse_args(arguments)
    try:
        rows, chats = run(
            chosen.artifact, chosen.chats, chosen.items, chosen.tokens, chosen.threads,
            chosen.instructions,
        )  # fmt: skip
    except EdgeftError as error:
        sys.exit(str(error))
    print(machine.describe_machine())
    print(table(rows, chats))
    facts: list[dict[str, Any]] = [
        {"cache": row.kv_type, "speculates": row.speculates, "tps": row.tokens_per_second,
         "kl": row.kl, "accepted": row.accepted} for row in rows
    ]  # fmt: skip
    print(json.dumps({"machine": machine.describe_machine(), "rows": facts}))


if __name__ == "__main__":
    main()
