"""Names of methods and objectives -> their classes, one row each.

    load_method("qlora")(options, card).prepare("cpu")

The classes' modules import torch at their top, so a module is imported only when it is chosen.
What must be known before that stands in the row.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any, cast

from edgeft.errors import InputError, did_you_mean, require
from edgeft.formats import FORMATS, load
from edgeft.train import memory
from edgeft.train.options import TrainOptions
from edgeft.train.protocol import Method, Objective

LORA = ("lora_r", "lora_alpha", "lora_dropout", "target_modules")
LORA_START = ("adapter", "add_tokens")
LORA_VARIANTS = ("use_rslora", "use_dora", "lora_plus_ratio")
SHIP = ("ship", "ship_steps", "ship_distill")
FROZEN = ("offload_weights",)
METHOD_OPTIONS = frozenset((
    *LORA, *LORA_START, *LORA_VARIANTS, *SHIP, *FROZEN, "quantization", "double_quant", "keep_4bit",
    "freeze_trainable_layers",
))  # fmt: skip
"""fields of TrainOptions that only some methods read"""


@dataclass(frozen=True)
class MethodRow:
    entry: str
    """module:class of a `Method`"""
    about: str
    """what trains, in one line"""
    options: tuple[str, ...]
    """METHOD_OPTIONS that it reads"""
    learning_rate: float
    """default of `edgeft train`"""
    trains: memory.Trains
    """what trains: its memory follows from it (`memory.estimate`)"""
    trained_share: float
    """trained weights / weights of the base, at most, for memory and the size of a checkpoint"""
    result: str = "adapter"
    """kind of the result's manifest: "adapter", or "base" for a whole model"""
    trains_base: bool = False
    """weights of the base train, so that a checkpoint holds the whole model"""

    @property
    def formats(self) -> tuple[str, ...]:
        """Formats of `edgeft.formats` that the result can be exported as; a family may have fewer."""
        return tuple(FORMATS)


@dataclass(frozen=True)
class ObjectiveRow:
    entry: str
    """module:class of an `Objective`"""
    about: str
    """what is learned, in one line"""
    not_read: tuple[str, ...] = ()
    """fields of TrainOptions that it does not read"""


METHODS = {
    "qlora": MethodRow(
        entry="edgeft.train.methods.qlora:QLoRA",
        about="LoRA matrices on a base frozen in 4 or 8 bits",
        options=(
            *LORA,
            *LORA_START,
            *LORA_VARIANTS,
            *SHIP,
            *FROZEN,
            "quantization",
            "double_quant",
            "keep_4bit",
        ),
        learning_rate=1e-3,
        trains=memory.QLORA,
        trained_share=0.02,
    ),
    "lora": MethodRow(
        entry="edgeft.train.methods.lora:LoRA",
        about="LoRA matrices on the base as it is stored",
        options=(*LORA, *LORA_START, *LORA_VARIANTS, *SHIP, *FROZEN),
        learning_rate=1e-3,
        trains=memory.LORA,
        trained_share=0.02,
    ),
    "rslora": MethodRow(
        entry="edgeft.train.methods.lora:RSLoRA",
        about="LoRA scaled by alpha / sqrt(r), for large ranks",
        options=(*LORA, *LORA_START, *SHIP, *FROZEN, "use_dora", "lora_plus_ratio"),
        learning_rate=5e-4,
        trains=memory.LORA,
        trained_share=0.02,
    ),
    "dora": MethodRow(
        entry="edgeft.train.methods.lora:DoRA",
        about="LoRA on the direction of a weight's rows, and their lengths",
        options=(*LORA, *LORA_START, *FROZEN, "use_rslora", "lora_plus_ratio"),
        learning_rate=1e-3,
        trains=memory.DORA,
        trained_share=0.02,
    ),
    "loraplus": MethodRow(
        entry="edgeft.train.methods.lora:LoRAPlus",
        about="LoRA with a larger learning rate for the matrices B",
        options=(*LORA, *LORA_START, *LORA_VARIANTS, *SHIP, *FROZEN),
        learning_rate=2e-4,
        trains=memory.LORA,
        trained_share=0.02,
    ),
    "pissa": MethodRow(
        entry="edgeft.train.methods.initialized:PiSSA",
        about="LoRA that begins as the largest singular values of a weight",
        options=LORA,
        learning_rate=5e-4,
        trains=memory.INITIALIZED,
        trained_share=0.02,
    ),
    "olora": MethodRow(
        entry="edgeft.train.methods.initialized:OLoRA",
        about="LoRA that begins as the orthonormal part of a weight",
        options=LORA,
        learning_rate=5e-4,
        trains=memory.INITIALIZED,
        trained_share=0.02,
    ),
    "ia3": MethodRow(
        entry="edgeft.train.methods.ia3:IA3",
        about="factors of keys, values and the inputs of the last feed-forward layer",
        options=("target_modules", *FROZEN),
        learning_rate=1e-2,
        trains=memory.SCALES,
        trained_share=0.001,
    ),
    "ln_tuning": MethodRow(
        entry="edgeft.train.methods.parts:LNTuning",
        about="the weights of the norms",
        options=("target_modules",),
        learning_rate=2e-3,
        trains=memory.NORMS,
        trained_share=0.001,
        trains_base=True,
    ),
    "bitfit": MethodRow(
        entry="edgeft.train.methods.parts:BitFit",
        about="the biases; the norms where the base has no biases",
        options=("target_modules",),
        learning_rate=2e-3,
        trains=memory.BIASES,
        trained_share=0.005,
        trains_base=True,
    ),
    "freeze": MethodRow(
        entry="edgeft.train.methods.parts:Freeze",
        about="the last layers, or chosen modules of them",
        options=("target_modules", "freeze_trainable_layers"),
        learning_rate=5e-4,
        trains=memory.LAYERS,
        trained_share=1,
        trains_base=True,
    ),
    "full": MethodRow(
        entry="edgeft.train.methods.full:Full",
        about="every weight",
        options=(),
        learning_rate=5e-5,
        trains=memory.ALL,
        trained_share=1,
        result="base",
        trains_base=True,
    ),
}

UNAVAILABLE = {
    "bottleneck": "a bottleneck adapter has an activation between its two matrices, so it is no change "
    "of a weight, and no format (gguf, hf, gptq, onnx) has a place for it",
}
"""method of the field that is not here -> the reason"""

OBJECTIVES = {
    "sft": ObjectiveRow("edgeft.train.objectives.sft:SFT", "the answers of conversations"),
    "pretrain": ObjectiveRow(
        "edgeft.train.objectives.pretrain:Pretrain",
        "every token of plain texts, in rows of --cutoff-length",
        not_read=("packing", "train_on_inputs"),
    ),
}

DEVICES = ("cpu",)
"""devices on which tests prove every method with every objective; a GPU that torch finds is used, too"""

PACKAGES = ("torch", "peft", "transformers")
"""packages of the extra `train` that every run imports"""


def method_row(name: str) -> MethodRow:
    """InputError for a name that is not in the table."""
    if name in UNAVAILABLE:
        raise InputError(f"no training method {name!r}: {UNAVAILABLE[name]}", "lora, or ia3")
    if name not in METHODS:
        raise InputError(f"no training method {name!r}", did_you_mean(name, METHODS))
    return METHODS[name]


def check_options(name: str, options: TrainOptions) -> None:
    """InputError for an option that was chosen and that the method does not read."""
    row = method_row(name)
    fields = {field.name: field.default for field in dataclasses.fields(options)}
    for option in sorted(METHOD_OPTIONS - set(row.options)):
        if getattr(options, option) != fields[option]:
            others = ", ".join(other for other, row in METHODS.items() if option in row.options)
            raise InputError(
                f"--{option.replace('_', '-')} is not for --method {name}", f"for {others}"
            )


def method_table() -> list[dict[str, Any]]:
    """One row of JSON for each method, and for each that is not here, with the reason."""
    rows: list[dict[str, Any]] = [
        {
            "method": name, "trains": row.about, "objectives": list(OBJECTIVES),
            "result": row.result, "formats": list(row.formats), "devices": list(DEVICES),
            "learning_rate": row.learning_rate,
            "options": [f"--{option.replace('_', '-')}" for option in row.options],
        }
        for name, row in METHODS.items()
    ]  # fmt: skip
    return rows + [{"method": name, "unavailable": why} for name, why in UNAVAILABLE.items()]


def check_objective(name: str, options: TrainOptions | None = None) -> None:
    """InputError for a name that is not in the table, and for an option that it does not read."""
    if name not in OBJECTIVES:
        raise InputError(f"no training objective {name!r}", did_you_mean(name, OBJECTIVES))
    row = OBJECTIVES[name]
    for option in row.not_read if options else ():
        if getattr(options, option):
            raise InputError(
                f"--{option.replace('_', '-')} is not for --objective {name}",
                f"which learns {row.about}",
            )


def load_method(name: str) -> type[Method]:
    """Import a method. MissingExtra where a package is not installed."""
    return cast(type[Method], _import(method_row(name).entry))


def load_objective(name: str) -> type[Objective]:
    """Import an objective. MissingExtra where a package is not installed."""
    check_objective(name)
    return cast(type[Objective], _import(OBJECTIVES[name].entry))


def _import(entry: str) -> Any:
    # Before torch: threads that spin at OpenMP's barriers make a shared machine up to 7 x slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for package in PACKAGES:
        require(package, "train")
    return load(entry)
