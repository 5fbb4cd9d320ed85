"""`--optimizer NAME` -> its row: the function that makes it, its memory, package and devices.

    optimizer_row("galore").state_bytes
    optimizer = create("galore", Weights.of(model, groups), settings)

A new optimizer is one function in `factories` and one row here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgeft.errors import InputError, did_you_mean
from edgeft.train.optimizers import factories
from edgeft.train.optimizers.weights import Settings, Weights


@dataclass(frozen=True)
class OptimizerRow:
    make: Callable[[Weights, Settings], Any]
    about: str
    """one line for `edgeft train --list`"""
    state_bytes: float
    """memory of its state for each weight of a 1024 x 1024 matrix"""
    source: str
    """paper or page"""
    package: str = ""
    """import name of the package that has it, where that is not torch"""
    extra: str = "train"
    """extra of edgeft that installs the package"""
    devices: tuple[str, ...] = ("cpu", "cuda")
    """where it runs"""
    reason: str = ""
    """why it does not run on the other devices"""
    fused_backward: bool = False
    """the step is part of the backward pass: no gradient is kept, none accumulated, none clipped"""
    one_rate: bool = False
    """all weights have the same learning rate"""
    own_schedule: bool = False
    """it needs a constant learning rate and has a warm-up of its own"""
    one_process: str = ""
    """why several processes cannot train with it; "" where they can"""
    state_classes: tuple[str, ...] = ()
    """module:class of objects in its state, which a checkpoint may hold"""


NOT_TRIED = "it was not tried with several"
FUSED = "it steps within the backward pass, before the gradients are summed"
OPTIMIZERS = {
    "adamw": OptimizerRow(
        factories.adamw, "AdamW, its step fused", 8, "https://arxiv.org/abs/1711.05101"
    ),
    "adamw-8bit": OptimizerRow(
        factories.adamw_8bit, "AdamW with moments in 8 bits (tensors from 4096 weights on)", 2.05,
        "https://arxiv.org/abs/2110.02861", "bitsandbytes",
    ),
    "paged-adamw-8bit": OptimizerRow(
        factories.paged_adamw_8bit, "the same with moments that move to the CPU's memory when the GPU's is full",
        2.05, "https://arxiv.org/abs/2305.14314", "bitsandbytes", devices=("cuda",),
        reason="bitsandbytes pages the memory of a GPU only; on a CPU adamw-8bit is the same",
    ),
    "adafactor": OptimizerRow(
        factories.adafactor, "Adafactor: second moments as a row and a column", 0.01,
        "https://arxiv.org/abs/1804.04235", "transformers",
    ),
    "lion": OptimizerRow(
        factories.lion, "Lion: the sign of a momentum; a third to a tenth of AdamW's learning rate", 4,
        "https://arxiv.org/abs/2302.06675", "bitsandbytes",
    ),
    "muon": OptimizerRow(
        factories.muon, "Muon on the matrices of linear layers, AdamW on the rest", 4,
        "https://arxiv.org/abs/2502.16982",
    ),
    "galore": OptimizerRow(
        factories.galore, "AdamW on gradients projected to a low rank", 1.5,
        "https://arxiv.org/abs/2403.03507", "galore_torch", "optimizers",
        state_classes=("galore_torch.galore_projector:GaLoreProjector",),
    ),
    "apollo": OptimizerRow(
        factories.apollo, "learning rates of channels from a low-rank sketch of the moments", 1.5,
        "https://arxiv.org/abs/2412.05270", "apollo_torch", "apollo", one_process=NOT_TRIED,
        state_classes=("apollo_torch.random_projector:GradientProjector",),
    ),
    "apollo-mini": OptimizerRow(
        factories.apollo_mini, "APOLLO of rank 1, one learning rate for each tensor", 0.01,
        "https://arxiv.org/abs/2412.05270", "apollo_torch", "apollo", one_process=NOT_TRIED,
        state_classes=("apollo_torch.random_projector:GradientProjector",),
    ),
    "lomo": OptimizerRow(
        factories.lomo, "SGD within the backward pass: no gradient is kept", 0,
        "https://arxiv.org/abs/2306.09782", "lomo_optim", "optimizers", fused_backward=True,
        one_rate=True, one_process=FUSED,
    ),
    "adalomo": OptimizerRow(
        factories.adalomo, "Adafactor's rule within the backward pass", 0.01,
        "https://arxiv.org/abs/2310.10195", "lomo_optim", "optimizers", devices=("cuda",),
        reason="lomo-optim 0.1.1 keeps the state of AdaLomo in the memory of a GPU",
        fused_backward=True, one_rate=True, one_process=FUSED,
    ),
    "badam": OptimizerRow(
        factories.badam, "AdamW on a float32 copy of one block of layers after the other", 12,
        "https://arxiv.org/abs/2404.02827", "badam", "optimizers", one_rate=True,
        one_process="the weights that train change on the way",
    ),
    "schedule-free": OptimizerRow(
        factories.schedule_free, "AdamW that averages weights in place of a schedule", 8,
        "https://arxiv.org/abs/2405.15682", "schedulefree", "optimizers", own_schedule=True,
    ),
    "sgd": OptimizerRow(
        factories.sgd, "plain gradient descent; --optimizer-args momentum=0.9 adds 4 bytes", 0,
        "https://doi.org/10.1214/aoms/1177729586",
    ),
}  # fmt: skip


def optimizer_row(name: str) -> OptimizerRow:
    """InputError for a name that is not in the table."""
    if name not in OPTIMIZERS:
        raise InputError(f"no optimizer {name!r}", did_you_mean(name, OPTIMIZERS))
    return OPTIMIZERS[name]


def optimizer_rows() -> list[dict[str, Any]]:
    """Every optimizer as {name, about, package, devices, state_bytes, source}, for a list."""
    return [
        {
            "name": name,
            "about": row.about,
            "package": row.package.replace("_", "-") or "torch",
            "extra": row.extra,
            "devices": list(row.devices),
            "state_bytes": row.state_bytes,
            "source": row.source,
        }
        for name, row in OPTIMIZERS.items()
    ]


def create(name: str, weights: Weights, settings: Settings) -> Any:
    """A `torch.optim.Optimizer`. InputError for an argument that its class does not take."""
    import torch

    row = optimizer_row(name)
    if row.one_rate and len({group.get("lr") for group in weights.groups}) > 1:
        raise InputError(
            f"--optimizer {name} has one learning rate for all weights, and the method has several",
            "--optimizer adamw",
        )
    try:
        optimizer = row.make(weights, settings)
    except (TypeError, ValueError, AssertionError) as error:
        if not settings.arguments:
            raise
        words = ", ".join(f"{key}={value}" for key, value in settings.arguments.items())
        raise InputError(f"--optimizer-args {words}: {error}", f"arguments of {name}") from None
    for entry in row.state_classes:  # so that torch.load accepts them in a checkpoint
        module, _, cls = entry.partition(":")
        torch.serialization.add_safe_globals([getattr(importlib.import_module(module), cls)])
    return optimizer
