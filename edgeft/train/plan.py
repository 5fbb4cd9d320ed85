"""Base + options -> for every method: memory, disk and speed of a run, and whether it fits here.

for row in plan(read_base(Path("model")), options, Batch(8, 512, 2048), METHODS, Machine.here()):
    print(row.method, row.request.memory.peak, row.fits)
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgeft import machine
from edgeft.formats import FORMATS, GPTQ_PREFIX
from edgeft.train.memory import BaseModel, Batch, Request, trained_weights
from edgeft.train.options import TrainOptions
from edgeft.train.registry import METHODS, method_row
from edgeft.train.ship import check_type

MATRIX_SHARE = 0.4
"""speed of a training run / speed of its matrix products: between .28 (AVX2, 98 tokens/s) and .58
(AVX-512, 422 tokens/s) for SmolLM2-135M on two cores"""
FULL_TIMES_WEIGHTS, ADAPTER_TIMES_WEIGHTS = 5, 1
"""rule of thumb: weights, gradients, two moments and activations; or the weights alone"""


@dataclass(frozen=True)
class Machine:
    """What a run may use."""

    memory: int
    """free bytes"""
    cores: int
    flops: float
    """float32 operations per second of a matrix product, all cores"""

    @classmethod
    def here(cls, memory: int | None = None) -> Machine:
        """This machine; its matrix products are timed for 0.2 s of one core."""
        free = machine.available_memory() if memory is None else memory
        cores = len(os.sched_getaffinity(0))
        return cls(free, cores, _flops(cores))


@dataclass(frozen=True)
class MethodPlan:
    """One row of the table."""

    method: str
    request: Request
    trained: int
    """weights that train"""
    rule_of_thumb: int
    """bytes"""
    fits: bool
    nearest: str
    """options with which it fits; "" where it fits as it is, or never"""
    micro_batch: int
    """the largest that fits, with the other options as they are; 0 where not even one example does"""
    checkpointed: int
    """peak with --checkpoint-activations"""
    tokens_per_second: float
    """estimate"""
    ship: str | None
    """the type of --ship that it is planned with; None where the method cannot train for one"""

    def to_json(self) -> dict[str, Any]:
        return {
            "method": self.method, "fits": self.fits, "nearest": self.nearest,
            "micro_batch": self.micro_batch, "trained": self.trained,
            "share": self.trained / self.request.base.weights,
            "memory": self.request.memory.to_json(), "peak_checkpointed": self.checkpointed,
            "rule_of_thumb": self.rule_of_thumb,
            "checkpoint_bytes": self.request.checkpoint_bytes,
            "tokens_per_second": round(self.tokens_per_second, 1), "ship": self.ship,
        }  # fmt: skip


def plan(
    base: BaseModel, options: TrainOptions, batch: Batch, methods: Sequence[str], here: Machine
) -> list[MethodPlan]:
    """InputError for an unknown method, FormatError for an unknown type of --ship."""
    if options.ship in FORMATS["gguf"].solved:  # trains as the type that it is solved for
        options = dataclasses.replace(options, ship=options.ship.removeprefix(GPTQ_PREFIX))
    if options.ship:
        check_type(options.ship)
    return [_row(name, base, options, batch, here) for name in methods or METHODS]


def _row(
    name: str, base: BaseModel, options: TrainOptions, batch: Batch, here: Machine
) -> MethodPlan:
    trains = method_row(name).trains
    if "ship" not in method_row(name).options:
        options = dataclasses.replace(options, ship=None)
    request = Request(base, options, trains, batch)
    fits = request.memory.needed <= here.memory
    largest = request.largest_micro_batch(here.memory)
    checkpointed = dataclasses.replace(
        request, options=dataclasses.replace(options, checkpoint_activations=True)
    )
    times = FULL_TIMES_WEIGHTS if trains.base == "all" else ADAPTER_TIMES_WEIGHTS
    trained = trained_weights(base, options, trains)
    return MethodPlan(
        method=name,
        request=request,
        trained=trained,
        rule_of_thumb=times * request.memory.base,
        fits=fits,
        nearest="" if fits else request.nearest_fit(here.memory),
        micro_batch=largest if request.of(largest).memory.needed <= here.memory else 0,
        checkpointed=checkpointed.memory.peak,
        tokens_per_second=_speed(base, trained, options, here),
        ship=options.ship,
    )


def _speed(base: BaseModel, trained: int, options: TrainOptions, here: Machine) -> float:
    """Tokens per second: 2 operations per weight in the forward pass and in that of the gradients of
    activations, 2 per weight that trains, once more the forward pass for checkpointed activations."""
    s = base.sizes
    embedding = s.vocabulary * s.hidden
    weights = base.weights - embedding * (1 if s.tied else 2)
    if s.experts:  # a token is computed by a few of the experts
        experts = s.experts * 3 * s.hidden * s.expert_ffn * (s.layers - s.dense_layers)
        weights -= int(experts * (1 - s.experts_used / s.experts))
    passes = 6 if options.checkpoint_activations else 4
    return here.flops * MATRIX_SHARE / (passes * weights + 2 * min(trained, weights))


def _flops(cores: int) -> float:
    """The best of some products of (512, 768) by (768, 2048), by the CPU time of one core."""
    import numpy as np
    import threadpoolctl

    a, b = np.ones((512, 768), np.float32), np.ones((768, 2048), np.float32)
    best, end = float("inf"), time.process_time() + 0.2
    with threadpoolctl.threadpool_limits(1):
        while time.process_time() < end:
            started = time.process_time()
            a @ b
            best = min(best, time.process_time() - started)
    return cores * 2 * 512 * 768 * 2048 / best
