"""What `edgeft bench` does: speed, memory, fidelity and accuracy of artifacts, beside the fp16 model.

    rows = bench(Bench((Path("q4_k_m.gguf"),), baseline=Path("f16.gguf"), text=Path("wiki.txt")), asking)
    rows[1].fidelity["text"]["kl"]                       # {"value": 0.0712, "error": 0.0013}

The baseline, where it is a model, is the first row. It is also compared with itself, run by another
number of threads: what differs there is the floor, below which no difference means anything.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgeft.benchmarks.fidelity import compare, kept_baseline
from edgeft.benchmarks.fidelity.compare import Fidelity, Measured, Reference
from edgeft.benchmarks.options import Asking, Bench
from edgeft.benchmarks.performance import latency, memory
from edgeft.benchmarks.performance.latency import GRID, QUICK
from edgeft.benchmarks.quality import evaluate
from edgeft.data.rows import load_examples
from edgeft.errors import InputError
from edgeft.formats import format_of
from edgeft.progress import say
from edgeft.records import Measurement, Memory, Speed
from edgeft.runtimes.protocol import Runtime, open_runtime

TOGETHER = 4
"""models that are open at a time, beside the baseline"""
ROOM = 4096
"""tokens of a conversation that is still compared"""

Compared = dict[Path, dict[str, Fidelity]]
"""artifact -> name of a text -> how far it is"""


def bench(options: Bench, asking: Asking) -> list[Measurement]:
    """One row per artifact. InputError before any work for what is no artifact."""
    kept = options.baseline is not None and options.baseline.suffix == kept_baseline.SUFFIX
    live = None if kept else options.baseline
    paths = list(dict.fromkeys([*([live] if live else []), *options.artifacts]))
    for path in paths:
        format_of(path)
    if (options.text or options.chats) and not options.baseline:
        raise InputError("nothing to compare the texts' tokens with", "--baseline f16.gguf")
    if options.keep and not (live and (options.text or options.chats)):
        raise InputError("nothing to keep", "--baseline f16.gguf and --text or --chats")
    if options.keep:
        options.keep.parent.mkdir(parents=True, exist_ok=True)
    if kept and not (options.text or options.chats):
        raise InputError(f"{options.baseline} is for --text and --chats", "name one of them")
    items = evaluate.load_items(asking) if asking.items else None
    scores = [evaluate.measure(path, items, asking, options.shots) if items else None
              for path in paths]  # fmt: skip
    found = _fidelity(options, paths, live, asking.threads)
    speeds, memories = _speeds(options, paths, live, asking.threads)
    return [
        Measurement(
            name=score.arm if score else path.stem, path=str(path), size=evaluate.size_of(path),
            speed=timing, memory=used, score=score,
            fidelity={name: figure.to_json() for name, figure in found.get(path, {}).items()},
        )
        for path, score, timing, used in zip(paths, scores, speeds, memories, strict=True)
    ]  # fmt: skip


def _speeds(
    options: Bench, paths: Sequence[Path], live: Path | None, threads: int | None
) -> tuple[Sequence[Speed | None], Sequence[Memory | None]]:
    if not options.speed:
        nothing = [None] * len(paths)
        return nothing, nothing
    colds, memories = [], []
    for path in paths:
        say(f"memory of {path.name}")
        cold, used = memory.measure(path, threads)
        if options.smallest:
            used = dataclasses.replace(used, smallest=memory.smallest(path, used, threads))
        colds.append(round(cold, 3))
        memories.append(used)
    cells = GRID if options.grid else QUICK
    speeds = latency.compare(paths, cells, live, threads, options.effort, options.through)
    return [dataclasses.replace(s, load_cold_s=c)
            for s, c in zip(speeds, colds, strict=True)], memories  # fmt: skip


def _fidelity(
    options: Bench, paths: Sequence[Path], live: Path | None, threads: int | None
) -> Compared:
    if not (options.text or options.chats):
        return {}
    with open_runtime(live or paths[0], threads, ROOM) as reader:
        sequences = _sequences(options, reader)
        every = [item for items in sequences.values() for item in items]
        if options.keep:
            kept_baseline.save(options.keep, reader, every, str(live))
        reference: Runtime | Reference = reader
        if live is None:
            assert options.baseline
            reference = kept_baseline.Stored(options.baseline, every)
        others = [path for path in paths if path != live]
        return compared(reference, others, sequences, threads, live)


def compared(
    reference: Runtime | Reference,
    others: Sequence[Path],
    sequences: Mapping[str, Sequence[Measured]],
    threads: int | None = None,
    again: Path | None = None,
) -> Compared:
    """Each of the artifacts against the reference, some at a time; `again`: the reference's own, which
    another number of threads then runs."""
    found: Compared = {}
    for start in range(0, max(len(others), 1), TOGETHER):
        with contextlib.ExitStack() as opened:
            models = {path: opened.enter_context(open_runtime(path, threads, ROOM))
                      for path in others[start : start + TOGETHER]}  # fmt: skip
            if again and start == 0:
                models[again] = opened.enter_context(
                    open_runtime(again, other_threads(threads), ROOM)
                )
            for name, items in sequences.items():
                title = f"fidelity ({name})"
                figures = compare.compare(reference, list(models.values()), items, title)
                for path, figure in zip(models, figures, strict=True):
                    found.setdefault(path, {})[name] = figure
    return found


def _sequences(options: Bench, reader: Runtime) -> dict[str, list[Measured]]:
    found = {}
    if options.text:
        found["text"] = compare.file_chunks(options.text, reader, options.chunks)
    if options.chats:
        chats = load_examples(options.chats)
        found["chats"] = compare.chat_answers(chats, reader.chat, reader.encode, ROOM)
    return found


def other_threads(threads: int | None) -> int:
    own = threads or len(os.sched_getaffinity(0))
    return own - 1 if own > 1 else 2
