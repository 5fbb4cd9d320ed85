"""Names of methods and objectives -> their classes, one row each.

    load_method("qlora")(options, card).prepare("cpu")

The classes' modules import torch at their top, so a module is imported only when it is chosen.
What must be known before that stands in the row.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any, cast, get_args

from edgeft.errors import InputError, did_you_mean, require
from edgeft.formats import FORMATS, load
from edgeft.train import memory
from edgeft.train.options import Parallel, TrainOptions
from edgeft.train.protocol import Method, Objective

LORA = ("lora_r", "lora_alpha", "lora_dropout", "target_modules")
LORA_START = ("adapter", "add_tokens")
LORA_VARIANTS = ("use_rslora", "use_dora", "lora_plus_ratio")
SHIP = ("ship", "ship_steps", "ship_from", "ship_distill", "ship_text")
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


OBJECTIVE_OPTIONS = (
    "beta", "loss_type", "label_smoothing", "simpo_gamma", "desirable_weight", "undesirable_weight",
    "reward", "generations", "max_new_tokens", "temperature", "ppo_epochs", "gamma", "gae_lambda",
    "value_coef", "cliprange",
)  # fmt: skip
"""fields of TrainOptions that only some objectives read"""
NOT_FOR_PAIRS = ("packing", "train_on_inputs", "ship")
"""fields of TrainOptions that objectives of preferences do not read"""
NOT_FOR_REFERENCES = (*NOT_FOR_PAIRS, "lora_dropout", "neftune_alpha")
"""those that losses with a reference do not read: noise would be in the reference, too"""
WRITES = ("beta", "reward", "generations", "max_new_tokens", "temperature")
"""OBJECTIVE_OPTIONS of those whose model writes answers"""
NOT_FOR_REWARDS = (*NOT_FOR_REFERENCES, "keep_best", "early_stopping")
"""fields of TrainOptions that they do not read: their validation loss says nothing"""
DPO_LOSSES = (
    "sigmoid", "hinge", "ipo", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "aot",
    "aot_unpaired", "apo_zero", "apo_down", "discopop", "sigmoid_norm",
)  # fmt: skip


@dataclass(frozen=True)
class ObjectiveRow:
    entry: str
    """module:class of an `Objective`"""
    about: str
    """what is learned, in one line"""
    data: str
    """the rows that it needs, in one line"""
    options: tuple[str, ...] = ()
    """OBJECTIVE_OPTIONS that it reads"""
    not_read: tuple[str, ...] = ()
    """other fields of TrainOptions that it does not read"""
    loss_types: tuple[str, ...] = ()
    """values of --loss-type, the default first"""
    smoothed: tuple[str, ...] = ()
    """those that read --label-smoothing; "" where there is no --loss-type"""
    rate: float = 1.0
    """its default learning rate / the method's"""
    extra: str = "train"
    """extra of edgeft with its packages"""
    methods: tuple[str, ...] = ()
    """methods that train it; () = all"""
    processes: tuple[str, ...] = ()
    """values of --parallel with which tests prove it"""


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

PAIRS = "pairs of a better and a worse answer"
OBJECTIVES = {
    "sft": ObjectiveRow(
        "edgeft.train.objectives.sft:SFT",
        "the answers of conversations",
        data="conversations that end with an answer",
        processes=get_args(Parallel),
    ),
    "pretrain": ObjectiveRow(
        "edgeft.train.objectives.pretrain:Pretrain",
        "every token of plain texts, in rows of --cutoff-length",
        data="plain texts",
        processes=get_args(Parallel),
        not_read=("packing", "train_on_inputs"),
    ),
    "dpo": ObjectiveRow(
        "edgeft.train.objectives.dpo:DPO",
        "to prefer the better answer of a pair, held to the model at the start",
        data=PAIRS,
        processes=("ddp",),
        options=("beta", "loss_type", "label_smoothing"),
        not_read=NOT_FOR_REFERENCES,
        loss_types=DPO_LOSSES,
        smoothed=("robust", "exo_pair", "aot", "aot_unpaired"),
        rate=0.1,
        extra="align",
    ),
    "kto": ObjectiveRow(
        "edgeft.train.objectives.kto:KTO",
        "to write good answers and not bad ones, held to the model at the start",
        data="answers that are labelled good or bad",
        options=("beta", "loss_type", "desirable_weight", "undesirable_weight"),
        not_read=NOT_FOR_REFERENCES,
        loss_types=("kto", "apo_zero_unpaired"),
        rate=0.1,
        extra="align",
    ),
    "reward": ObjectiveRow(
        "edgeft.train.objectives.reward:Reward",
        "a scalar head that rates answers; the result is a reward model",
        data=PAIRS,
        processes=("ddp",),
        not_read=(*NOT_FOR_PAIRS, "add_tokens"),
        extra="align",
        methods=("qlora", "lora", "rslora", "dora", "loraplus"),
    ),
    "grpo": ObjectiveRow(
        "edgeft.train.objectives.rollouts:GRPO",
        "to write answers with larger rewards than the others to the same prompt",
        data="prompts, with or without a reference answer",
        options=(*WRITES, "loss_type"),
        not_read=NOT_FOR_REWARDS,
        loss_types=("dapo", "grpo", "bnpo", "dr_grpo"),
        rate=0.1,
        extra="align",
    ),
    "rloo": ObjectiveRow(
        "edgeft.train.objectives.rollouts:RLOO",
        "to write answers with larger rewards than the mean of the others",
        data="prompts, with or without a reference answer",
        options=WRITES,
        not_read=NOT_FOR_REWARDS,
        rate=0.1,
        extra="align",
    ),
    "ppo": ObjectiveRow(
        "edgeft.train.objectives.ppo:PPO",
        "to write answers with larger rewards than a value head expects",
        data="prompts, with or without a reference answer",
        options=(*WRITES, "ppo_epochs", "gamma", "gae_lambda", "value_coef", "cliprange"),
        not_read=NOT_FOR_REWARDS,
        rate=0.1,
        extra="align",
    ),
    "orpo": ObjectiveRow(
        "edgeft.train.objectives.odds:ORPO",
        "the better answer of a pair, and that its odds are larger",
        data=PAIRS,
        processes=("ddp",),
        options=("beta",),
        not_read=NOT_FOR_PAIRS,
        rate=0.1,
        extra="align",
    ),
    "cpo": ObjectiveRow(
        "edgeft.train.objectives.odds:CPO",
        "the better answer of a pair, and to prefer it",
        data=PAIRS,
        processes=("ddp",),
        options=("beta", "loss_type", "label_smoothing"),
        not_read=NOT_FOR_PAIRS,
        loss_types=("sigmoid", "hinge", "ipo"),
        smoothed=("sigmoid",),
        rate=0.1,
        extra="align",
    ),
    "simpo": ObjectiveRow(
        "edgeft.train.objectives.odds:SimPO",
        "to prefer the better answer of a pair by its mean token, with a margin",
        data=PAIRS,
        processes=("ddp",),
        options=(
            "beta",
            "label_smoothing",
            "simpo_gamma",
            "desirable_weight",
            "undesirable_weight",
        ),
        not_read=NOT_FOR_PAIRS,
        smoothed=("",),
        rate=0.1,
        extra="align",
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
            "method": name, "trains": row.about, "objectives": [one for one, row in OBJECTIVES.items() if not row.methods or name in row.methods],
            "result": row.result, "formats": list(row.formats), "devices": list(DEVICES),
            "learning_rate": row.learning_rate,
            "options": [f"--{option.replace('_', '-')}" for option in row.options],
        }
        for name, row in METHODS.items()
    ]  # fmt: skip
    return rows + [{"method": name, "unavailable": why} for name, why in UNAVAILABLE.items()]


def objective_table() -> list[dict[str, Any]]:
    """One row of JSON for each objective."""
    return [
        {
            "objective": name, "learns": row.about, "data": row.data, "extra": row.extra,
            "options": [f"--{option.replace('_', '-')}" for option in row.options],
            "methods": list(row.methods or METHODS), "processes": list(row.processes), "loss_types": list(row.loss_types), "learning_rate_factor": row.rate,
        }
        for name, row in OBJECTIVES.items()
    ]  # fmt: skip


def check_objective(
    name: str, options: TrainOptions | None = None, method: str | None = None
) -> None:
    """InputError for a name that is not in the table, for an option that it does not read, and for a method
    that does not train it."""
    if name not in OBJECTIVES:
        raise InputError(f"no training objective {name!r}", did_you_mean(name, OBJECTIVES))
    row = OBJECTIVES[name]
    if method and row.methods and method not in row.methods:
        raise InputError(
            f"--method {method} does not train --objective {name}",
            f"--method {', '.join(row.methods)}",
        )
    if not options:
        return
    others = [option for option in OBJECTIVE_OPTIONS if option not in row.options]
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    for option in (*others, *row.not_read):
        if getattr(options, option) != defaults[option]:
            raise InputError(
                f"--{option.replace('_', '-')} is not for --objective {name}",
                f"which learns {row.about}",
            )
    loss = options.loss_type or next(iter(row.loss_types), "")
    if options.loss_type and loss not in row.loss_types:
        raise InputError(f"no --loss-type {loss!r}", did_you_mean(loss, row.loss_types))
    if loss == "exo_pair" and not options.label_smoothing:
        raise InputError(f"--loss-type {loss} needs --label-smoothing", "--label-smoothing 0.001")
    if options.label_smoothing and loss not in row.smoothed:
        raise InputError(
            f"--loss-type {loss} reads no --label-smoothing",
            f"--loss-type {' or '.join(row.smoothed)}",
        )


def load_method(name: str) -> type[Method]:
    """Import a method. MissingExtra where a package is not installed."""
    return cast(type[Method], _import(method_row(name).entry))


def load_objective(name: str) -> type[Objective]:
    """Import an objective. MissingExtra where a package is not installed."""
    check_objective(name)
    row = OBJECTIVES[name]
    if row.extra == "align":
        require("trl", row.extra)
    return cast(type[Objective], _import(row.entry))


def _import(entry: str) -> Any:
    # Before torch: threads that spin at OpenMP's barriers make a shared machine up to 7 x slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for package in PACKAGES:
        require(package, "train")
    return load(entry)
