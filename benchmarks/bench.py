"""Artifacts -> speed, memory, fidelity and accuracy of each, for `edgeft bench`.

    options = BenchOptions((Path("q4_k_m.gguf"),), baseline=Path("f16.gguf"), text=Path("wiki.txt"))
    rows = run_bench(options, EvalOptions())
    rows[1].fidelity["text"]["kl"]                       # {"value": 0.0712, "error": 0.0013}

The baseline, if it is a model, is the first row. It is also compared with itself, run by another
number of threads: differences below that floor are chance.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgeft import machine
from edgeft.benchmarks.fidelity import compare, kept_baseline
from edgeft.benchmarks.fidelity.compare import Fidelity, Reference, ScoredSequence
from edgeft.benchmarks.options import BenchOptions, EvalOptions
from edgeft.benchmarks.performance import latency, memory
from edgeft.benchmarks.performance.latency import GRID, QUICK, SPARE_TOKENS
from edgeft.benchmarks.quality import evaluate
from edgeft.benchmarks.quality.fewshot import FewShot
from edgeft.data.encoding import renderable
from edgeft.data.rows import BadRows, load_examples
from edgeft.errors import InputError
from edgeft.progress import say
from edgeft.records import Measurement, Memory, Speed
from edgeft.runtimes.needs import PROCESS_BYTES, needs_of
from edgeft.runtimes.protocol import Runtime, checked_format, open_runtime

MAX_OPEN_MODELS = 4
"""models that are open at a time, besides the reference"""
CONTEXT_TOKENS = 4096
"""longest conversation that is compared"""

Fidelities = dict[Path, dict[str, Fidelity]]
"""artifact -> name of a text -> fidelity on it"""


def run_bench(options: BenchOptions, eval_options: EvalOptions) -> list[Measurement]:
    """One row per artifact. InputError for bad input, before any work."""
    from_file = options.baseline is not None and options.baseline.suffix == kept_baseline.SUFFIX
    model = None if from_file else options.baseline
    paths = list(dict.fromkeys([*([model] if model else []), *options.artifacts]))
    for path in paths:
        checked_format(path)
    _check_texts(options, model)
    _check_memory(options, paths, eval_options.threads)
    if options.save_baseline:
        options.save_baseline.parent.mkdir(parents=True, exist_ok=True)
    items = evaluate.load_items(eval_options) if eval_options.items else None
    few_shot = None if options.shots is None else FewShot(options.shots)
    scores = [
        evaluate.measure(path, items, eval_options, few_shot) if items else None for path in paths
    ]
    fidelities = _fidelities(options, paths, model, eval_options)
    speeds, memories = _speeds(options, paths, model, eval_options.threads)
    return [
        Measurement(
            name=score.arm if score else path.stem, path=str(path), size=evaluate.size_of(path),
            speed=speed, memory=used, score=score,
            fidelity={name: fidelity.to_json()
                      for name, fidelity in fidelities.get(path, {}).items()},
        )
        for path, score, speed, used in zip(paths, scores, speeds, memories, strict=True)
    ]  # fmt: skip


def _check_memory(options: BenchOptions, paths: Sequence[Path], threads: int | None) -> None:
    """ResourceError where the models that are open at a time do not fit into --max-memory."""
    if not machine.has_memory_budget():
        return
    needs = sorted((needs_of(path, threads) for path in paths), key=lambda one: -one.file)
    workloads = [*(GRID if options.sweep else QUICK), memory.WORKLOAD] if options.speed else []
    tokens = max((one.prompt + one.new + SPARE_TOKENS for one in workloads), default=0)
    clients = max((one.clients for one in workloads), default=0)
    texts = needs[: MAX_OPEN_MODELS + 1] if options.text or options.chats else []
    machine.preflight(Path(), f"measuring {len(paths)} artifacts", memory=max(
        PROCESS_BYTES + max(one.bytes(1, CONTEXT_TOKENS, "f16") for one in needs),
        PROCESS_BYTES + sum(one.bytes(1, CONTEXT_TOKENS, "f16") for one in texts),
        sum(PROCESS_BYTES + one.bytes(clients, tokens, "f16") for one in needs),
    ), spare="measure fewer artifacts at a time")  # fmt: skip
    machine.hold_memory()


def _check_texts(options: BenchOptions, model: Path | None) -> None:
    """`model`: the baseline, unless it is a file that `save_baseline` wrote."""
    texts = options.text or options.chats
    if texts and not options.baseline:
        raise InputError("nothing to compare the texts' tokens with", "--baseline f16.gguf")
    if options.save_baseline and not (model and texts):
        raise InputError("nothing to keep", "--baseline f16.gguf and --text or --chats")
    if options.baseline and not model and not texts:
        raise InputError(f"{options.baseline} is for --text and --chats", "name one of them")


def _speeds(
    options: BenchOptions, paths: Sequence[Path], baseline: Path | None, threads: int | None
) -> tuple[Sequence[Speed | None], Sequence[Memory | None]]:
    if not options.speed:
        nothing = [None] * len(paths)
        return nothing, nothing
    cold_loads, memories = [], []
    for path in paths:
        say(f"memory of {path.name}")
        cold, used = memory.measure(path, threads)
        if options.find_memory_limit:
            limit = memory.smallest_limit(path, used, threads)
            used = dataclasses.replace(used, smallest=limit)
        cold_loads.append(round(cold, 3))
        memories.append(used)
    workloads = GRID if options.sweep else QUICK
    speeds = latency.compare(paths, workloads, baseline, threads, options.effort, options.via)
    speeds = [
        dataclasses.replace(speed, load_cold_s=cold)
        for speed, cold in zip(speeds, cold_loads, strict=True)
    ]
    return speeds, memories


def _fidelities(
    options: BenchOptions, paths: Sequence[Path], baseline: Path | None, eval_options: EvalOptions
) -> Fidelities:
    if not (options.text or options.chats):
        return {}
    threads = eval_options.threads
    with open_runtime(baseline or paths[0], threads, CONTEXT_TOKENS) as reader:
        sequences = _sequences(options, reader, eval_options.bad_rows)
        flat = [item for items in sequences.values() for item in items]
        if options.save_baseline:
            kept_baseline.save(options.save_baseline, reader, flat, str(baseline))
        reference: Runtime | Reference = reader
        if baseline is None:
            assert options.baseline
            reference = kept_baseline.KeptBaseline(options.baseline, flat)
        others = [path for path in paths if path != baseline]
        return compare_artifacts(reference, others, sequences, threads, baseline)


def compare_artifacts(
    reference: Runtime | Reference,
    others: Sequence[Path],
    sequences: Mapping[str, Sequence[ScoredSequence]],
    threads: int | None = None,
    repeated: Path | None = None,
) -> Fidelities:
    """Fidelity of each artifact to the reference, `MAX_OPEN_MODELS` opened at a time.

    `repeated`: the reference's own artifact, to be run again by another number of threads.
    """
    fidelities: Fidelities = {}
    for start in range(0, max(len(others), 1), MAX_OPEN_MODELS):
        with contextlib.ExitStack() as stack:
            models = {
                path: stack.enter_context(open_runtime(path, threads, CONTEXT_TOKENS))
                for path in others[start : start + MAX_OPEN_MODELS]
            }
            if repeated and start == 0:
                models[repeated] = stack.enter_context(
                    open_runtime(repeated, other_threads(threads), CONTEXT_TOKENS)
                )
            for name, items in sequences.items():
                title = f"fidelity ({name})"
                compared = compare.compare_fidelity(reference, list(models.values()), items, title)
                for path, fidelity in zip(models, compared, strict=True):
                    fidelities.setdefault(path, {})[name] = fidelity
    return fidelities


def _sequences(
    options: BenchOptions, reader: Runtime, bad_rows: BadRows
) -> dict[str, list[ScoredSequence]]:
    """Name of a text -> its token ids, cut by `reader`."""
    sequences = {}
    if options.text:
        sequences["text"] = compare.file_chunks(options.text, reader, options.chunks)
    if options.chats:
        chats = load_examples(options.chats, bad_rows)
        chats = renderable(chats, reader.chat, options.chats, bad_rows)
        sequences["chats"] = compare.chat_answers(chats, reader.chat, reader.encode, CONTEXT_TOKENS)
    return sequences


def other_threads(threads: int | None) -> int:
    """A number of threads other than `threads` (None = all cores)."""
    count = threads or len(os.sched_getaffinity(0))
    return count - 1 if count > 1 else 2
