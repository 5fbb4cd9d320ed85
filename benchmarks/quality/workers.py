"""Scores of several artifacts at a time: in processes of this machine, or on a Ray cluster.

    with workers(jobs=2) as together:
        together([Path("q8_0.gguf"), Path("q4_k_m.gguf")], items, asking)   # kept, for quality.measure

The scores come to where `quality.measure` keeps its own, so whoever asks for one later finds it there.
Nodes of a cluster need edgeft and the same files under the same paths.
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

from edgeft.benchmarks.options import Asking
from edgeft.benchmarks.quality import evaluate
from edgeft.benchmarks.quality.evaluate import Items
from edgeft.errors import ResourceError, require
from edgeft.records import Score

PATIENCE = 5.0
"""s until a cluster must have answered"""
Together = Callable[[Sequence[Path], Items, Asking], None]


@contextlib.contextmanager
def workers(jobs: int = 1, ray: str | None = None) -> Iterator[Together | None]:
    """`jobs` artifacts at a time, the cores shared out among them; `ray`: address of a cluster, or
    `local` to start one here. None where nobody else would answer."""
    if ray:
        with _cluster(ray) as run:
            yield _keeping(run, jobs)
    elif jobs > 1:
        # A fork would take along what llama.cpp's threads hold.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, mp_context=context) as pool:
            yield _keeping(functools.partial(_pooled, pool), jobs)
    else:
        yield None


Call = tuple[Path, Items, Asking]


def _keeping(run: Callable[[list[Call]], list[Score]], jobs: int) -> Together:
    answered: set[Path] = set()

    def known(path: Path, items: Items, asking: Asking) -> bool:
        return path in answered or not (asking.fresh or evaluate.kept(path, items) is None)

    def together(paths: Sequence[Path], items: Items, asking: Asking) -> None:
        if known(paths[0], items, asking):
            return  # of the last window; the next one begins where that ends
        todo = [path for path in paths[:jobs] if not known(path, items, asking)]
        threads = asking.threads or max(1, len(os.sched_getaffinity(0)) // jobs)
        own = dataclasses.replace(asking, threads=threads)
        scores = run([(path, items, own) for path in todo])
        for path, score in zip(todo, scores, strict=True):
            evaluate.keep(path, items, score)
        answered.update(todo)

    return together


def _pooled(pool: ProcessPoolExecutor, calls: list[Call]) -> list[Score]:
    try:
        return list(pool.map(_measured, calls))
    except BrokenProcessPool:
        told = "a process that answered was ended by the system"
        raise ResourceError(told, "lower --jobs, or free some memory") from None


def _measured(call: Call) -> Score:
    path, items, asking = call
    return evaluate.measure(path, items, asking)


@contextlib.contextmanager
def _cluster(address: str) -> Iterator[Callable[[list[Call]], list[Score]]]:
    ray: Any = require("ray", "ray")
    where = None if address == "local" else address
    try:
        if where and ":" in where:  # for one that does not answer, Ray would wait for minutes
            host, _, port = where.rpartition("/")[2].rpartition(":")
            socket.create_connection((host, int(port)), PATIENCE).close()
        ray.init(where, include_dashboard=False if where is None else None, log_to_driver=False,
                 logging_level="error")  # fmt: skip
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        told = f"no Ray cluster at {address}: {reason}"
        raise ResourceError(told, "ray start --head, or --ray local") from None
    try:
        remote = ray.remote(_measured)
        yield lambda calls: list(ray.get([remote.remote(call) for call in calls]))
    finally:
        ray.shutdown()
