"""Names of methods and objectives -> their classes, one row each.

    load_method("qlora")(options, card).prepare("cpu")

The classes' modules import torch at their top, so a module is imported only when it is chosen.
What must be known before that stands in the row.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from edgeft.errors import InputError, did_you_mean, require
from edgeft.formats import load
from edgeft.train.options import TrainOptions
from edgeft.train.protocol import Method, Objective


@dataclass(frozen=True)
class MethodRow:
    entry: str
    """module:class of a `Method`"""
    result: str
    """kind of the result's manifest: "adapter", or "base" for a whole model"""
    bytes_per_weight: Callable[[TrainOptions], int]
    """memory for each weight of the base during training"""
    trained_share: float
    """trained weights / weights of the base, at most, for the size of a checkpoint"""


METHODS = {
    "qlora": MethodRow(
        entry="edgeft.train.methods.qlora:QLoRA",
        result="adapter",
        bytes_per_weight=lambda options: 1 if options.keep_4bit else 4,
        trained_share=0.02,
    ),
}

OBJECTIVES = {"sft": "edgeft.train.objectives.sft:SFT"}
"""name -> module:class of an `Objective`"""

PACKAGES = ("torch", "peft", "transformers")
"""packages of the extra `train` that every run imports"""


def method_row(name: str) -> MethodRow:
    """InputError for a name that is not in the table."""
    if name not in METHODS:
        raise InputError(f"no training method {name!r}", did_you_mean(name, METHODS))
    return METHODS[name]


def load_method(name: str) -> type[Method]:
    """Import a method. MissingExtra where a package is not installed."""
    return cast(type[Method], _import(method_row(name).entry))


def load_objective(name: str) -> type[Objective]:
    """Import an objective. MissingExtra where a package is not installed."""
    if name not in OBJECTIVES:
        raise InputError(f"no training objective {name!r}", did_you_mean(name, OBJECTIVES))
    return cast(type[Objective], _import(OBJECTIVES[name]))


def _import(entry: str) -> Any:
    # Before torch: threads that spin at OpenMP's barriers make a shared machine up to 7 x slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for package in PACKAGES:
        require(package, "train")
    return load(entry)
