"""Base + options + what a method trains -> the weights that train, and how many they are.

    trained_weights(base, options, LORA)
    trained_counts(base, options, LORA)     # beside the base, of the base

Only names and shapes are needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from edgeft import models
from edgeft.train.memory.base_model import BaseModel, Linear
from edgeft.train.options import TrainOptions
from edgeft.train.targets import ALL_LINEAR, is_target, pattern_of

Part = Literal["", "norms", "biases", "layers", "all"]


@dataclass(frozen=True)
class Trains:
    """What a method trains: all that its memory follows from."""

    beside: Literal["", "lora", "dora", "scales"] = ""
    """what is added to each target module"""
    base: Part = ""
    """which weights of the base train: its norms, its biases (its norms, where it has none), its last
    layers (`freeze_trainable_layers`), all"""
    quantized: bool = False
    """whether --keep-4bit keeps the base packed"""
    maps: bool = False
    """whether --offload-weights maps the base from a file: nothing of it changes"""


QLORA = Trains(beside="lora", quantized=True, maps=True)
LORA = Trains(beside="lora", maps=True)
INITIALIZED = Trains(beside="lora")
DORA = Trains(beside="dora", maps=True)
SCALES = Trains(beside="scales", maps=True)
NORMS = Trains(base="norms")
BIASES = Trains(base="biases")
LAYERS = Trains(base="layers")
ALL = Trains(base="all")

SCALED = ("attn_k", "attn_v", "attn_qkv", "ffn_down")
"""linear layers that IA3 scales: the output, of ffn_down the input"""


def trained_weights(base: BaseModel, options: TrainOptions, trains: Trains) -> int:
    """How many values train."""
    return sum(trained_counts(base, options, trains))


def trained_counts(base: BaseModel, options: TrainOptions, trains: Trains) -> tuple[int, int]:
    """(values beside the base, values of the base) that train."""
    beside = sum(
        _beside(options, trains, linear)
        for layer in range(base.sizes.layers)
        for linear in target_linears(base, options, trains, layer)
    )
    of_base = sum(
        math.prod(shape)
        for name, shape in base.shapes.items()
        if trains_weight(base, options, trains, name)
    )
    return beside, of_base


def target_linears(
    base: BaseModel, options: TrainOptions, trains: Trains, layer: int
) -> list[Linear]:
    """The linear layers of a block that something is added to."""
    if not trains.beside:
        return []
    linears = base.linears(layer)
    if trains.beside == "scales" and not options.target_modules:
        return [linear for linear in linears if linear.part in SCALED]
    chosen = options.target_modules or base.card.lora_targets
    if list(chosen) == [ALL_LINEAR]:
        return linears
    targets = pattern_of(chosen) or chosen
    return [linear for linear in linears if is_target(linear.name, targets)]


def _beside(options: TrainOptions, trains: Trains, linear: Linear) -> int:
    """Values that are added to one linear layer."""
    if trains.beside == "scales":
        return linear.columns if linear.part == "ffn_down" else linear.rows
    lora = options.lora_r * (linear.rows + linear.columns)
    return lora + (linear.rows if trains.beside == "dora" else 0)


def trains_weight(base: BaseModel, options: TrainOptions, trains: Trains, name: str) -> bool:
    """Whether a weight of the base trains."""
    match trains.base:
        case "all":
            return True
        case "norms":
            return base.part(name).endswith("norm") and name.endswith("weight")
        case "biases":
            if not base.has_biases:
                return base.part(name).endswith("norm")
            return name.endswith(".bias")
        case "layers":
            layer = models.generalize(name)[1][:1]
            count = options.freeze_trainable_layers
            first = 0 if count < 0 else base.sizes.layers - count
            last = -count if count < 0 else base.sizes.layers
            return bool(layer) and (not count or first <= layer[0] < last)
        case _:
            return False
