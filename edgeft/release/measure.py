"""A run of the gate -> what each model scored: the base, the candidates, speed, fidelity, chance.

Nothing here decides anything: `edgeft.release.judge` does, from the records of this module.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft.benchmarks import bench
from edgeft.benchmarks.fidelity.compare import chat_answers
from edgeft.benchmarks.performance import latency
from edgeft.benchmarks.quality import evaluate
from edgeft.benchmarks.quality.fewshot import FewShot
from edgeft.records import Memory, Score, Speed
from edgeft.release.forgetting import ForgettingScores
from edgeft.release.prepare import GateRun
from edgeft.release.refusals import RefusalScores, refusal_labels
from edgeft.release.sequential_gate import SequentialScores, answer_until_decided
from edgeft.runtimes.protocol import open_runtime

FIDELITY_ITEMS = 128
"""items on whose answers the next-token distributions are compared"""

Timings = dict[Path, tuple[Speed, Memory]]
Fidelities = Mapping[Path, dict[str, Any]]
"""artifact -> name of a text -> Fidelity.to_json()"""


@dataclass(frozen=True)
class MeasuredBase:
    """The model before the fine-tune, asked in one way."""

    name: str
    kind: str
    """base or few-shot"""
    score: Score


@dataclass(frozen=True)
class MeasuredCandidate:
    """One candidate and the baseline on the same items."""

    path: Path
    baseline: Score
    score: Score
    sequential: SequentialScores | None
    """None unless early stopping was asked for"""
    refusals: RefusalScores | None
    forgetting: ForgettingScores | None = None
    """on the general items, where they were asked"""


def measure_base(run: GateRun) -> list[MeasuredBase]:
    """The base with instructions, and with `shots` examples where there are as many."""
    path, shots = run.options.base, run.options.shots
    if not path:
        return []
    names = {0: "base, instructions only"}
    if shots and len(run.items.fewshot_pool) >= shots:
        names[shots] = f"base, {shots} examples"
    return [
        MeasuredBase(name, "few-shot" if count else "base", _score(run, path, FewShot(count)))
        for count, name in names.items()
    ]


def measure_baseline(run: GateRun) -> Score | None:
    """The baseline on all items; None with early stopping, which asks it only as far as needed."""
    return None if run.options.early_stop else _score(run, run.options.baseline)


def measure_candidate(run: GateRun, path: Path, baseline: Score | None) -> MeasuredCandidate:
    """`baseline`: its score on all items; None stops early."""
    if baseline is None:
        sequential = answer_until_decided(run, path)
        before, after = sequential.baseline, sequential.candidate
    else:
        sequential = None
        # Prefetched scores are as fresh as the user asked for: the cache may be read.
        no_cache = run.eval_options.no_cache and not run.prefetch
        eval_options = dataclasses.replace(run.eval_options, no_cache=no_cache)
        before, after = baseline, evaluate.measure(path, run.items, eval_options)
    return MeasuredCandidate(
        path, before, after, sequential, _measure_refusals(run, path), _measure_general(run, path)
    )


def measure_speed(run: GateRun, artifacts: Sequence[Path]) -> Timings:
    """Speed and memory of these: those known already, and all others if `speed` was asked for."""
    timings = {path: run.timed[path] for path in artifacts if path in run.timed}
    if run.options.speed:
        for path in artifacts:
            if path not in timings:
                timings[path] = latency.measure(path, run.eval_options.threads)
    return timings


def measure_fidelity(run: GateRun, candidates: Sequence[Path]) -> Fidelities:
    """Next-token distributions on the items' answers against the baseline's; {} if not asked for.

    With `floor`, the baseline itself is among the results, run by another number of threads.
    """
    if not run.options.fidelity:
        return {}
    baseline, threads = run.options.baseline, run.eval_options.threads
    with open_runtime(baseline, threads, bench.CONTEXT_TOKENS) as reader:
        examples = run.items.examples[:FIDELITY_ITEMS]
        answers = chat_answers(examples, reader.chat, reader.encode, bench.CONTEXT_TOKENS)
        repeated = baseline if run.options.repeat_baseline else None
        compared = bench.compare_artifacts(
            reader, candidates, {"answers": answers}, threads, repeated
        )
    return {
        path: {name: fidelity.to_json() for name, fidelity in by_text.items()}
        for path, by_text in compared.items()
    }


def measure_floor(run: GateRun, baseline: Score, fidelities: Fidelities) -> dict[str, Any] | None:
    """The baseline against itself with another number of threads; None if not asked for."""
    if not run.options.repeat_baseline:
        return None
    path, threads = run.options.baseline, bench.other_threads(run.eval_options.threads)
    items = run.items.part(range(len(baseline.values)))
    with open_runtime(path, threads) as model:
        again = evaluate.answer(model, items, None, f"{path.stem}, {threads} threads")
    flips = sum(a != b for a, b in zip(baseline.values, again.values, strict=True))
    fidelity = fidelities.get(path, {}).get("answers")
    kl = fidelity["kl"]["value"] if fidelity else None
    return {"threads": threads, "flips": flips, "n": len(baseline.values), "kl": kl}


def _measure_refusals(run: GateRun, candidate: Path) -> RefusalScores | None:
    if run.refusal_items is None:
        return None
    before, after = (
        evaluate.measure(path, run.refusal_items, run.eval_options)
        for path in (run.options.baseline, candidate)
    )
    return RefusalScores(refusal_labels(run.refusal_items), before, after)


def _measure_general(run: GateRun, candidate: Path) -> ForgettingScores | None:
    """As a fine-tune is asked, the base too: without instructions and examples."""
    items, base = run.general_items, run.options.base
    if items is None or base is None:
        return None
    base_score, baseline, score = (
        evaluate.measure(path, items, run.eval_options)
        for path in (base, run.options.baseline, candidate)
    )
    return ForgettingScores(items.examples, base_score, baseline, score)


def _score(run: GateRun, path: Path, few_shot: FewShot | None = None) -> Score:
    return evaluate.measure(path, run.items, run.eval_options, few_shot)
