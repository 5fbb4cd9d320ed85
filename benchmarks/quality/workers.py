"""Several artifacts and the same items -> their Scores in the cache, measured in parallel.

    with open_workers(jobs=2) as prefetch:
        prefetch([Path("q8_0.gguf"), Path("q4_k_m.gguf")], items, eval_options)

The artifacts answer in processes of this machine or on a Ray cluster. A later `evaluate.measure` reads
the cached scores. Nodes of a cluster need edgeft and the same files under the same paths.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from edgeft.benchmarks.options import EvalOptions
from edgeft.benchmarks.quality import evaluate
from edgeft.benchmarks.quality.evaluate import Items
from edgeft.errors import ResourceError, require
from edgeft.records import Score

CONNECT_TIMEOUT_S = 5.0
"""seconds within which a cluster must accept a connection"""
Prefetch = Callable[[Sequence[Path], Items, EvalOptions], None]
"""called with all unmeasured artifacts in order; measures the first `jobs` of them"""
Call = tuple[Path, Items, EvalOptions]
"""arguments of `evaluate.measure`"""


@contextlib.contextmanager
def open_workers(jobs: int = 1, ray: str | None = None) -> Iterator[Prefetch | None]:
    """`jobs` artifacts at a time, with the cores divided among them; None if `jobs` is 1 without Ray.

    `ray`: address of a cluster, or `local` to start one here. ResourceError if there is none.
    """
    if ray:
        with ray_cluster(ray) as cluster:
            yield _prefetch(functools.partial(_run_on_cluster, cluster), jobs)
    elif jobs > 1:
        # A forked process would inherit locks that llama.cpp's threads hold.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, mp_context=context) as pool:
            yield _prefetch(functools.partial(_run_in_pool, pool), jobs)
    else:
        yield None


def _prefetch(run: Callable[[list[Call]], list[Score]], jobs: int) -> Prefetch:
    answered: set[Path] = set()

    def is_known(path: Path, items: Items, options: EvalOptions) -> bool:
        return path in answered or not (
            options.no_cache or evaluate.cached_score(path, items) is None
        )

    def prefetch(paths: Sequence[Path], items: Items, options: EvalOptions) -> None:
        if is_known(paths[0], items, options):
            return  # measured with an earlier group
        todo = [path for path in paths[:jobs] if not is_known(path, items, options)]
        threads = options.threads or max(1, len(os.sched_getaffinity(0)) // jobs)
        shared = dataclasses.replace(options, threads=threads)
        scores = run([(path, items, shared) for path in todo])
        for path, score in zip(todo, scores, strict=True):
            evaluate.cache_score(path, items, score)
        answered.update(todo)

    return prefetch


def _run_in_pool(pool: ProcessPoolExecutor, calls: list[Call]) -> list[Score]:
    try:
        return list(pool.map(_measure, calls))
    except BrokenProcessPool:
        problem = "the system ended a worker process"
        raise ResourceError(problem, "lower --jobs, or free some memory") from None


def _run_on_cluster(ray: Any, calls: list[Call]) -> list[Score]:
    remote = ray.remote(_measure)
    return list(ray.get([remote.remote(call) for call in calls]))


def _measure(call: Call) -> Score:
    path, items, options = call
    return evaluate.measure(path, items, options)


@contextlib.contextmanager
def ray_cluster(address: str) -> Iterator[Any]:
    """The module `ray`, connected to a cluster; `local` starts one here. ResourceError for none."""
    ray: Any = require("ray", "ray")
    ray_address = None if address == "local" else address
    try:
        if (
            ray_address and ":" in ray_address
        ):  # Ray itself would wait for minutes for a dead address
            host, _, port = ray_address.rpartition("/")[2].rpartition(":")
            socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
        ray.init(ray_address, include_dashboard=False if ray_address is None else None,
                 log_to_driver=False, logging_level="error")  # fmt: skip
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        problem = f"no Ray cluster at {address}: {reason}"
        raise ResourceError(problem, "ray start --head, or --ray local") from None
    try:
        yield ray
    finally:
        ray.shutdown()
