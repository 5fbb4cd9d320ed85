"""An artifact, draft models and chats -> the speed of speculation, by task.

    python -m edgeft.benchmarks.studies.speculation q8_0.gguf --draft q4_0.gguf \\
        --chats smart_home=test.jsonl --items 20 --threads 2

Each row is the server's engine with one slot, isolated, without HTTP: without speculation, by n-grams, and by
each draft model. All engines compute in one thread, and every prompt is answered by all of them in turn,
so that the rows share the machine's noise. The task `copy` is made here: texts of random words that the
prompt asks to write again, as editing does. `same`: answers that are those without speculation, bit for
bit, which is all of them or a defect. Every row opens the artifact, so weights in q4_0 are in memory
as often as there are rows. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgeft import machine
from edgeft.benchmarks.performance.process import WORDS
from edgeft.benchmarks.studies.cache_types import Chat, Row, answer, read_chats
from edgeft.errors import EdgeftError, InputError
from edgeft.kv_cache import KV_TYPES
from edgeft.report import tables
from edgeft.runtimes.draft_model import DraftModel
from edgeft.runtimes.gguf import GGUFRuntime
from edgeft.runtimes.protocol import open_runtime
from edgeft.server.batching_engine import BatchingEngine
from edgeft.server.engine import Worker

COPY = "copy"
COPY_WORDS = 60
"""of a text that is written again"""


def copies(items: int, runtime: GGUFRuntime) -> list[Chat]:
    """Prompts that show one text written again, and ask for another one."""
    chats = []
    for seed in range(items):
        draw = random.Random(seed)
        first, second = (" ".join(draw.choices(WORDS.split(), k=COPY_WORDS)) for _ in range(2))
        prompt = (
            f"Text: {first}\nThe same text again: {first}\n\nText: {second}\nThe same text again:"
        )
        chats.append(Chat(runtime.encode(prompt), runtime.encode(f" {second}"), second))
    return chats


@contextlib.contextmanager
def engines(
    artifact: Path, drafts: Sequence[Path], kv_type: str, threads: int
) -> Iterator[dict[str, BatchingEngine]]:
    """Name of a row -> its engine; they share a thread."""

    def opened(path: Path, **how: Any) -> GGUFRuntime:
        runtime = open_runtime(path, threads, **how)
        if not isinstance(runtime, GGUFRuntime):
            raise InputError(f"{path} does not run on llama.cpp")
        return runtime

    with contextlib.ExitStack() as stack:
        worker = stack.enter_context(contextlib.closing(Worker()))
        made: dict[str, BatchingEngine] = {}
        for name, path in [("none", None), ("ngram", None), *((one.stem, one) for one in drafts)]:
            target = opened(artifact, kv_type=kv_type, batch_invariant=True)
            draft_model = None
            if path:
                small = opened(path)
                draft_model = worker.call(lambda: DraftModel(small, target))  # noqa: B023  called at once
            engine = BatchingEngine(
                name, target, 1, 1, worker, speculate=name == "ngram", draft_model=draft_model
            )
            stack.callback(engine.close)
            made[f"draft {name}" if path else name] = engine
        yield made


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The facts of each task and row."""
    facts = []
    with engines(options.artifact, options.draft, options.kv_type, options.threads) as opened:
        runtime = next(iter(opened.values())).runtime
        assert isinstance(runtime, GGUFRuntime)
        tasks = {COPY: copies(options.items, runtime)}
        for text in options.chats:
            name, _, path = text.rpartition("=")
            chats = read_chats(Path(path), options.items, runtime, options.instructions)
            tasks[name or Path(path).stem] = chats
        for task, chats in tasks.items():
            rows = {name: Row(options.kv_type, name != "none") for name in opened}
            before = {name: engine.counts for name, engine in opened.items()}
            names = list(opened)
            for number, chat in enumerate(chats):
                turn = number % len(names)
                for name in [*names[turn:], *names[:turn]]:
                    answer(opened[name], rows[name], chat, options.tokens, ignore_eos=task == COPY)
            for name, row in rows.items():
                counts = opened[name].counts
                drafted = counts.drafted_tokens - before[name].drafted_tokens
                accepted = counts.accepted_tokens - before[name].accepted_tokens
                new = counts.new_tokens - before[name].new_tokens
                pairs = zip(row.answers, rows["none"].answers, strict=True)
                facts.append({
                    "task": task, "speculation": name, "tps": row.tokens_per_second,
                    "ratio": row.tokens_per_second / (rows["none"].tokens_per_second or 1),
                    "right": accepted / max(1, drafted), "by_guess": accepted / max(1, new),
                    "same": sum(a == b for a, b in pairs), "answers": len(chats),
                })  # fmt: skip
    return facts


def table(facts: Sequence[dict[str, Any]]) -> str:
    head = [
        "task",
        "speculation",
        "tokens/s",
        "of none",
        "guesses right",
        "tokens by guess",
        "same",
    ]
    body = [
        [
            row["task"], row["speculation"], f"{row['tps']:.1f}", f"{row['ratio']:.2f}",
            "" if row["speculation"] == "none" else f"{row['right']:.0%}",
            "" if row["speculation"] == "none" else f"{row['by_guess']:.0%}",
            f"{row['same']} of {row['answers']}",
        ]
        for row in facts
    ]  # fmt: skip
    return tables.table(head, body)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--draft", type=Path, action="append", default=[], help="repeatable")
    parser.add_argument(
        "--chats", action="append", default=[], metavar="NAME=FILE",
        help="rows of messages, the last one is the answer; repeatable",
    )  # fmt: skip
    parser.add_argument("--items", type=int, default=20, help="of each task")
    parser.add_argument("--tokens", type=int, default=128, help="of an answer at most")
    parser.add_argument("--kv-type", choices=list(KV_TYPES), default="q8_0-f16")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--instructions", default="", help="system message of every chat")
    options = parser.parse_args(arguments)
    try:
        facts = run(options)
    except EdgeftError as error:
        sys.exit(str(error))
    print(machine.describe_machine())
    print(table(facts))
    print(json.dumps({"machine": machine.describe_machine(), "rows": facts}))


if __name__ == "__main__":
    main()
