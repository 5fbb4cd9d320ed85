"""Candidates and a baseline on the same items -> the Release: may one be shipped, and why?

    options = GateOptions(candidates=(Path("q4_k_m.gguf"),), baseline=Path("f16.gguf"))
    release = run_gate(options, EvalOptions("smart_home"))
    release.outcome, release.ship, release.reason

The candidates are tested in a fixed sequence, from the largest to the smallest file, up to the first
that does not pass. Each one is therefore held to the full error rate without a correction for their
number (W. Maurer, L. Hothorn and W. Lehmacher 1995); those behind the first that does not pass are
not tested. A candidate passes if it is proven not to be worse than the baseline by the margin, on the
items and, if they are asked, on refusals (intersection-union test: all parts must pass, again
without a correction).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edgeft.benchmarks.options import EvalOptions
from edgeft.benchmarks.quality import evaluate
from edgeft.benchmarks.quality.workers import Prefetch
from edgeft.records import Memory, Release, Score, Speed
from edgeft.release.describe import Measurements, describe
from edgeft.release.judge import JudgedCandidate, decide, judge_candidate
from edgeft.release.measure import (
    measure_base,
    measure_baseline,
    measure_candidate,
    measure_fidelity,
    measure_floor,
    measure_speed,
)
from edgeft.release.options import GateOptions
from edgeft.release.prepare import GateRun, prepare


def run_gate(
    options: GateOptions,
    eval_options: EvalOptions,
    commands: Sequence[str] = (),
    timed: Mapping[Path, tuple[Speed, Memory]] | None = None,
    prefetch: Prefetch | None = None,
) -> Release:
    """Measure, judge, describe. InputError for bad input, before any long work.

    `commands`: command lines that repeat the run, for the report. `timed`: artifacts whose speed and
    memory are known already. `prefetch` may answer several candidates at once; it is given them in the
    order in which they are tested.
    """
    run = prepare(options, eval_options, timed or {}, prefetch)
    ordered = sorted(options.candidates, key=evaluate.size_of, reverse=True)
    base = measure_base(run)
    best_base = max((b.score for b in base), key=lambda score: score.accuracy, default=None)
    baseline = measure_baseline(run)
    judged = _test_in_order(run, ordered, baseline, best_base)
    if baseline is None:  # the longest of the runs that stopped early
        runs = (candidate.measured.baseline for candidate in judged)
        baseline = max(runs, key=lambda score: len(score.values))
    tested = ordered[: len(judged)]
    timings = measure_speed(run, [*ordered, options.baseline])
    fidelities = measure_fidelity(run, tested)
    floor = measure_floor(run, baseline, fidelities)
    untested = ordered[len(judged) :]
    measured = Measurements(base, baseline, judged, untested, timings, fidelities, floor)
    return describe(run, measured, decide(judged), commands)


def _test_in_order(
    run: GateRun, ordered: Sequence[Path], baseline: Score | None, base: Score | None
) -> list[JudgedCandidate]:
    """Test one candidate after the other, up to the first that does not pass."""
    judged: list[JudgedCandidate] = []
    for number, path in enumerate(ordered):
        if run.prefetch and not run.options.early_stop:
            run.prefetch(ordered[number:], run.items, run.eval_options)
        judged.append(judge_candidate(run, measure_candidate(run, path, baseline), base))
        if judged[-1].outcome != "PASS":
            break
    return judged
