"""Latency of artifacts: load, time to first token, time per token, one client or several.

    speeds = compare([Path("f16.gguf"), Path("q4_k_m.gguf")], cells=GRID, baseline=Path("f16.gguf"))
    speeds[1].cells[0].against["decode"]                 # {"ratio": 1.38, "low": 1.36, "high": 1.40}
    speed, memory = measure(Path("q4_k_m.gguf"))         # one, quickly

Each artifact has a process that does nothing else (`edgeft.benchmarks.performance.process`). They take turns, forth
and back (A B B A), so that a machine that gets slower hurts all alike; the ratio to the baseline is that
of medians, its interval a bootstrap over the rounds (B. Efron 1979), in which both were measured one
after the other. Where the runs of either vary by more than a bound, there is no ratio.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeft.benchmarks.options import EFFORT, Effort
from edgeft.benchmarks.performance import memory, roofline
from edgeft.benchmarks.performance.http import Served
from edgeft.benchmarks.performance.process import Child, Run, Timed, Use
from edgeft.progress import Progress
from edgeft.records import SAMPLES, Cell, Memory, Speed

QUICK = (Use(256, 64, 1),)
GRID = tuple(
    Use(prompt, new, clients)
    for prompt, new, clients in itertools.product((64, 256, 1024), (16, 64), (1, 2, 4))
)
"""3 prompt lengths, 2 lengths of answers, 1 to 4 clients"""
DRAWS = 2000
"""of a bootstrap"""
FIGURES: dict[str, Callable[[Run], float]] = {
    "ttft": lambda run: statistics.mean(run.ttft),
    "decode": lambda run: statistics.mean(run.paces or [0.0]),
    "e2e": lambda run: max(run.e2e),
}
"""seconds of one run that are compared; less is better"""


def measure(artifact: Path, threads: int | None = None) -> tuple[Speed, Memory]:
    """One artifact, in some seconds."""
    cold, found = memory.measure(artifact, threads)
    (speed,) = compare([artifact], QUICK, threads=threads, effort=Effort(runs=5, warm=1))
    return dataclasses.replace(speed, load_cold_s=round(cold, 3)), found


def compare(
    artifacts: Sequence[Path],
    cells: Sequence[Use] = QUICK,
    baseline: Path | None = None,
    threads: int | None = None,
    effort: Effort = EFFORT,
    through: str = "runtime",
) -> list[Speed]:
    """Of each artifact all `cells`, by its runtime or `through="server"`; the figures of `Speed` itself are those of `QUICK`, or the first."""
    room = max(cell.prompt + cell.new for cell in cells) + 64
    with contextlib.ExitStack() as stack:
        models: list[Child] = []
        loads = []
        child = Served if through == "server" else Timed
        for artifact in artifacts:
            models.append(stack.enter_context(child(artifact, threads, room)))
            loads.append(models[-1].loaded())
        rounds = [_rounds(models, use, effort) for use in cells]
    number = artifacts.index(baseline) if baseline in artifacts else None
    main = cells.index(QUICK[0]) if QUICK[0] in cells else 0
    speeds = []
    for i, (artifact, load) in enumerate(zip(artifacts, loads, strict=True)):
        found = [
            _cell(use, runs[i], None if number in (None, i) else runs[number], effort)
            for use, runs in zip(cells, rounds, strict=True)
        ]
        own = found[main]
        top = roofline.ceiling(artifact, own.prompt + own.new // 2, threads)
        speeds.append(Speed(
            load_s=round(load, 3), ttft_s=own.ttft[0], prefill_tps=own.prefill_tps,
            decode_tps=own.decode_tps, prompt_tokens=own.prompt, new_tokens=own.new, runs=own.runs,
            cells=tuple(found), itl_ms=_thinned(rounds[main][i]), through=through,
            roofline=top.share(own.decode_tps) if top and own.clients == 1 else None,
        ))  # fmt: skip
    return speeds


def _rounds(models: Sequence[Child], use: Use, effort: Effort) -> list[list[Run]]:
    """Of each model the runs that count."""
    found: list[list[Run]] = [[] for _ in models]
    title = f"{use.prompt} + {use.new} tokens, {use.clients} at a time"
    started = 0.0
    with Progress(title, effort.warm + effort.runs) as bar:
        for number in range(effort.warm + effort.runs):
            done = number - effort.warm
            if done == 0:
                started = time.perf_counter()
            if done >= effort.least and time.perf_counter() - started > effort.seconds:
                break
            order = list(range(len(models)))
            for i in order if number % 2 else order[::-1]:
                run = models[i].run(use, number)
                if done >= 0:
                    found[i].append(run)
            bar.update(1)
    return found


def _cell(use: Use, runs: Sequence[Run], base: Sequence[Run] | None, effort: Effort) -> Cell:
    gaps = [gap for run in runs for own in run.gaps for gap in own]
    paces = [pace for run in runs for pace in run.paces]
    first = [wait for run in runs for wait in run.ttft]
    whole = [wait for run in runs for wait in run.e2e]
    columns = {name: [figure(run) for run in runs] for name, figure in FIGURES.items()}
    noise = {name: _variation(column) for name, column in columns.items()}
    against: dict[str, dict[str, float]] = {}
    for name, figure in FIGURES.items() if base else ():
        other = [figure(run) for run in base or ()]
        calm = max(noise[name], _variation(other)) <= effort.noise
        against[name] = ratio_of_medians(columns[name], other) if calm else {}
    return Cell(
        **vars(use), runs=len(runs), ttft=_percentiles(first), e2e=_percentiles(whole),
        itl=_percentiles([1000 * gap for gap in gaps]),
        tpot_ms=round(1000 * statistics.median(paces), 3),
        prefill_tps=round(use.prompt / statistics.median(first), 1),
        decode_tps=round(1 / statistics.median(paces), 1),
        aggregate_tps=round(statistics.median(run.tokens / max(run.e2e) for run in runs), 1),
        noise={name: round(value, 4) for name, value in noise.items()}, against=against,
    )  # fmt: skip


def ratio_of_medians(own: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    """median(own) / median(base), and its 95 % bootstrap interval; measured in the same rounds."""
    pairs = np.array([own, base])
    draw = np.random.default_rng(0).integers(0, len(own), (DRAWS, len(own)))
    medians = np.median(pairs[:, draw], axis=2)
    low, high = np.quantile(medians[0] / medians[1], [0.025, 0.975])
    value = np.median(pairs[0]) / np.median(pairs[1])
    return {"ratio": _round(value), "low": _round(low), "high": _round(high)}


def _variation(values: Sequence[float]) -> float:
    """Standard deviation over mean."""
    return statistics.stdev(values) / statistics.mean(values) if len(values) > 1 else 0.0


def _percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    p50, p95, p99 = np.quantile(values, [0.5, 0.95, 0.99])
    return _round(p50), _round(p95), _round(p99)


def _round(value: float | np.floating[npt.NBitBase]) -> float:
    return float(f"{value:.4g}")


def _thinned(runs: Sequence[Run]) -> tuple[float, ...]:
    """Times between tokens in ms: of all, as many evenly spread quantiles as a report shows."""
    gaps = sorted(1000 * gap for run in runs for own in run.gaps for gap in own)
    chosen = np.linspace(0, len(gaps) - 1, min(SAMPLES, len(gaps))).round().astype(int)
    return tuple(round(gaps[i], 3) for i in chosen)
