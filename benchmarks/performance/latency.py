"""Artifacts -> load time, time to first token and time per token, for one client or several.

    paths = [Path("f16.gguf"), Path("q4_k_m.gguf")]
    speeds = compare(paths, workloads=GRID, baseline=Path("f16.gguf"))
    speeds[1].cells[0].against["decode"]                 # {"ratio": 1.38, "low": 1.36, "high": 1.40}
    speed, memory = measure(Path("q4_k_m.gguf"))         # one artifact, quickly

Each artifact has its own process (`edgeft.benchmarks.performance.process`). They are timed in alternating
order (A B B A), so that drift in machine speed affects all of them equally. The ratio to the baseline is a
ratio of medians; its interval is a bootstrap over the rounds (B. Efron 1979), each of which times both one
after the other. There is no ratio if the runs of either vary more than a bound.
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
from edgeft.benchmarks.performance.http import ServerProcess
from edgeft.benchmarks.performance.process import ArtifactProcess, Run, RuntimeProcess, Workload
from edgeft.progress import Progress
from edgeft.records import SAMPLES, LatencyPoint, Memory, Speed

QUICK = (Workload(256, 64, 1),)
SPARE_TOKENS = 64
"""context beyond a prompt and its answer"""
GRID = tuple(
    Workload(prompt, new, clients)
    for prompt, new, clients in itertools.product((64, 256, 1024), (16, 64), (1, 2, 4))
)
"""18 workloads: 3 prompt lengths, 2 answer lengths, 1, 2 and 4 clients"""
BOOTSTRAP_DRAWS = 2000
METRICS: dict[str, Callable[[Run], float]] = {
    "ttft": lambda run: statistics.mean(run.ttft),
    "decode": lambda run: statistics.mean(run.seconds_per_token or [0.0]),
    "e2e": lambda run: max(run.e2e),
}
"""name -> seconds of one run that are compared; less is better"""


def measure(artifact: Path, threads: int | None = None) -> tuple[Speed, Memory]:
    """Speed and memory of one artifact, in some seconds."""
    cold, used = memory.measure(artifact, threads)
    (speed,) = compare([artifact], QUICK, threads=threads, effort=Effort(runs=5, warmup=1))
    return dataclasses.replace(speed, load_cold_s=round(cold, 3)), used


def compare(
    artifacts: Sequence[Path],
    workloads: Sequence[Workload] = QUICK,
    baseline: Path | None = None,
    threads: int | None = None,
    effort: Effort = EFFORT,
    through: str = "runtime",
) -> list[Speed]:
    """Time all workloads with each artifact, by its runtime or, `through="server"`, over HTTP.

    The figures of `Speed` itself are those of the workload `QUICK` if it is among them, else of the
    first one.
    """
    context = max(workload.prompt + workload.new for workload in workloads) + SPARE_TOKENS
    with contextlib.ExitStack() as stack:
        models: list[ArtifactProcess] = []
        loads = []
        process = ServerProcess if through == "server" else RuntimeProcess
        for artifact in artifacts:
            models.append(stack.enter_context(process(artifact, threads, context)))
            loads.append(models[-1].loaded())
        rounds = [_rounds(models, workload, effort) for workload in workloads]
    base = artifacts.index(baseline) if baseline in artifacts else None
    main = workloads.index(QUICK[0]) if QUICK[0] in workloads else 0
    speeds = []
    for i, (artifact, load) in enumerate(zip(artifacts, loads, strict=True)):
        points = [
            _latency_point(workload, runs[i], None if base in (None, i) else runs[base], effort)
            for workload, runs in zip(workloads, rounds, strict=True)
        ]
        point = points[main]
        top = roofline.ceiling(artifact, point.prompt + point.new // 2, threads)
        speeds.append(Speed(
            load_s=round(load, 3), ttft_s=point.ttft[0], prefill_tps=point.prefill_tps,
            decode_tps=point.decode_tps, prompt_tokens=point.prompt, new_tokens=point.new, runs=point.runs,
            cells=tuple(points), itl_ms=_sample_gaps(rounds[main][i]), through=through,
            roofline=top.share(point.decode_tps) if top and point.clients == 1 else None,
        ))  # fmt: skip
    return speeds


def _rounds(
    models: Sequence[ArtifactProcess], workload: Workload, effort: Effort
) -> list[list[Run]]:
    """The timed runs of each model."""
    timed: list[list[Run]] = [[] for _ in models]
    title = f"{workload.prompt} + {workload.new} tokens, {workload.clients} at a time"
    started = 0.0
    with Progress(title, effort.warmup + effort.runs) as bar:
        for number in range(effort.warmup + effort.runs):
            done = number - effort.warmup
            if done == 0:
                started = time.perf_counter()
            if done >= effort.min_runs and time.perf_counter() - started > effort.seconds:
                break
            order = list(range(len(models)))
            for i in order if number % 2 else order[::-1]:
                run = models[i].run(workload, number)
                if done >= 0:
                    timed[i].append(run)
            bar.update(1)
    return timed


def _latency_point(
    workload: Workload, runs: Sequence[Run], base: Sequence[Run] | None, effort: Effort
) -> LatencyPoint:
    gaps = [gap for run in runs for answer in run.gaps for gap in answer]
    paces = [pace for run in runs for pace in run.seconds_per_token]
    first = [wait for run in runs for wait in run.ttft]
    whole = [wait for run in runs for wait in run.e2e]
    columns = {name: [figure(run) for run in runs] for name, figure in METRICS.items()}
    noise = {name: _variation(column) for name, column in columns.items()}
    against: dict[str, dict[str, float]] = {}
    for name, figure in METRICS.items() if base else ():
        other = [figure(run) for run in base or ()]
        calm = max(noise[name], _variation(other)) <= effort.noise
        against[name] = ratio_of_medians(columns[name], other) if calm else {}
    return LatencyPoint(
        **vars(workload), runs=len(runs), ttft=_percentiles(first), e2e=_percentiles(whole),
        itl=_percentiles([1000 * gap for gap in gaps]),
        tpot_ms=round(1000 * statistics.median(paces), 3),
        prefill_tps=round(workload.prompt / statistics.median(first), 1),
        decode_tps=round(1 / statistics.median(paces), 1),
        aggregate_tps=round(statistics.median(run.tokens / max(run.e2e) for run in runs), 1),
        noise={name: round(value, 4) for name, value in noise.items()}, against=against,
    )  # fmt: skip


def ratio_of_medians(seconds: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    """median(seconds) / median(base) with its 95 % bootstrap interval; paired by round."""
    pairs = np.array([seconds, base])
    draw = np.random.default_rng(0).integers(0, len(seconds), (BOOTSTRAP_DRAWS, len(seconds)))
    medians = np.median(pairs[:, draw], axis=2)
    low, high = np.quantile(medians[0] / medians[1], [0.025, 0.975])
    value = np.median(pairs[0]) / np.median(pairs[1])
    return {"ratio": _round(value), "low": _round(low), "high": _round(high)}


def _variation(values: Sequence[float]) -> float:
    """Coefficient of variation: standard deviation over mean."""
    return statistics.stdev(values) / statistics.mean(values) if len(values) > 1 else 0.0


def _percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    """50th, 95th and 99th."""
    p50, p95, p99 = np.quantile(values, [0.5, 0.95, 0.99])
    return _round(p50), _round(p95), _round(p99)


def _round(value: float | np.floating[npt.NBitBase]) -> float:
    return float(f"{value:.4g}")


def _sample_gaps(runs: Sequence[Run]) -> tuple[float, ...]:
    """Evenly spread quantiles of the times between tokens, ms; at most `SAMPLES`."""
    gaps = sorted(1000 * gap for run in runs for answer in run.gaps for gap in answer)
    chosen = np.linspace(0, len(gaps) - 1, min(SAMPLES, len(gaps))).round().astype(int)
    return tuple(round(gaps[i], 3) for i in chosen)
