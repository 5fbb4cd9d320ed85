"""`--parallel NAME` -> its row: what the processes divide, and what does not go with it.

parallel_row("zero2").optimizers
check_parallel(options, method, objective)      # refuses before anything is loaded
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft.errors import InputError, MissingExtra
from edgeft.train.optimizers import OPTIMIZERS, optimizer_row
from edgeft.train.optimizers.table import NOT_TRIED
from edgeft.train.options import TrainOptions
from edgeft.train.registry import METHODS, OBJECTIVES

ONE_PROCESS = {
    "ship": "the file's values are computed in one process",
    "offload_activations": NOT_TRIED,
}
"""field of TrainOptions that several processes do not read -> the reason"""
UNDIVIDED = {
    "keep_4bit": "packed weights are not divided",
    "offload_weights": "mapped weights are not divided",
    "add_tokens": "the embedding with new rows is not divided",
    "keep_best": "a checkpoint's weights come back at the start of a run alone",
}
"""field of TrainOptions that does not go with divided weights or states -> the reason"""
WHOLE_METHODS = ("pissa", "olora")
"""methods that write the difference to their start"""
ALL_IN_ONE = tuple(name for name, row in OPTIMIZERS.items() if not row.one_process)


@dataclass(frozen=True)
class ParallelRow:
    about: str
    """what each process holds, in one line"""
    optimizers: tuple[str, ...] = ("adamw",)
    """those that tests prove"""
    not_with: Mapping[str, str] | None = None
    """field of TrainOptions -> why it does not go with it"""
    package: str = ""
    """import name and extra of edgeft"""
    own_checkpoints: bool = False
    """its checkpoints are read by as many processes of the same kind only"""


_zero = functools.partial(
    ParallelRow, not_with=UNDIVIDED, package="deepspeed", own_checkpoints=True
)
PARALLEL = {
    "ddp": ParallelRow("the whole model, its share of the batch", ALL_IN_ONE),
    "fsdp2": ParallelRow(
        "its share of weights, gradients and the optimizer's state", not_with=UNDIVIDED
    ),
    "zero1": _zero("its share of the optimizer's state"),
    "zero2": _zero("its share of gradients and the optimizer's state"),
    "zero3": _zero("its share of weights, gradients and the optimizer's state"),
}


def check_parallel(
    options: TrainOptions,
    method: str,
    objective: str,
    watched: bool = False,
    answers: bool = False,
) -> None:
    """InputError for what several processes, or those of this kind, cannot train; MissingExtra.

    `watched`: a sweep decides at each evaluation whether the run goes on. `answers`: items are answered then.
    """
    row, kind = PARALLEL[options.parallel], f"--parallel {options.parallel}"
    if options.world_size == 1:
        if options.parallel != "ddp" or options.offload:
            raise InputError(f"{kind} is for several processes", "--processes 2")
        return
    if watched:
        raise InputError("a trial of a sweep is one process", "--jobs in place of --processes")
    if options.threads == "auto":
        raise InputError("--threads auto is for one process", "a number, or all")
    _check_fields(options, ONE_PROCESS, "for one process", "leave --processes out")
    _check_fields(options, row.not_with or {}, f"not for {kind}", "--parallel ddp")
    if reason := optimizer_row(options.optimizer).one_process:
        raise InputError(
            f"--optimizer {options.optimizer} is for one process: {reason}", "--optimizer adamw"
        )
    if options.optimizer not in row.optimizers:
        raise InputError(
            f"--optimizer {options.optimizer} was not tried with {kind}",
            f"--optimizer {' or '.join(row.optimizers)}, or --parallel ddp",
        )
    if row.not_with and answers:
        raise InputError(
            f"--eval-items is not for {kind}: one process writes the answers", "--parallel ddp"
        )
    if row.not_with and method in WHOLE_METHODS:
        raise InputError(
            f"--method {method} is not for {kind}: it needs whole weights at its end",
            "--method lora, or --parallel ddp",
        )
    kinds = OBJECTIVES[objective].processes
    if not kinds:
        several = ", ".join(name for name, one in OBJECTIVES.items() if one.processes)
        raise InputError(f"--objective {objective} is for one process", f"several train {several}")
    if options.parallel not in kinds:
        raise InputError(
            f"--objective {objective} was not tried with {kind}", f"--parallel {' or '.join(kinds)}"
        )
    _check_offload(options)
    if row.package and importlib.util.find_spec(row.package) is None:
        raise MissingExtra(
            f"{kind} needs {row.package}, which is not installed",
            f"pip install 'edgeft[{row.package}]'",
        )


def _check_fields(
    options: TrainOptions, reasons: Mapping[str, str], what_for: str, hint: str
) -> None:
    for name, reason in reasons.items():
        if getattr(options, name):
            raise InputError(f"--{name.replace('_', '-')} is {what_for}: {reason}", hint)


def _check_offload(options: TrainOptions) -> None:
    """InputError for an --offload that DeepSpeed does not have."""
    if not options.offload:
        return
    device, _, folder = options.offload.partition(":")
    if not PARALLEL[options.parallel].package:
        raise InputError("--offload is DeepSpeed's", "--parallel zero2 or zero3")
    if (device, bool(folder)) not in (("cpu", False), ("nvme", True)):
        raise InputError(f"--offload {options.offload} is not known", "cpu, or nvme:FOLDER")
    if device == "nvme" and options.parallel != "zero3":
        raise InputError("--offload nvme is for --parallel zero3", "--offload cpu")
    if device == "nvme" and not Path(folder).is_dir():
        raise InputError(f"--offload nvme: there is no folder {folder}", "make it on the NVMe disk")


def checkpoint_layout(options: TrainOptions) -> dict[str, Any]:
    """What a checkpoint's readers must have in common; {} where any number of processes reads it."""
    if not PARALLEL[options.parallel].own_checkpoints:
        return {}
    return {
        "parallel": options.parallel,
        "processes": options.processes,
        "nodes": options.nodes,
    }


def parallel_table() -> list[dict[str, Any]]:
    """One row of JSON for each --parallel."""
    return [
        {
            "parallel": name,
            "holds": row.about,
            "methods": [name for name in METHODS if not (row.not_with and name in WHOLE_METHODS)],
            "optimizers": list(row.optimizers),
            "objectives": [one for one, objective in OBJECTIVES.items() if name in objective.processes],
            "not_with": [f"--{field.replace('_', '-')}" for field in {**ONE_PROCESS, **(row.not_with or {})}],
            "extra": row.package or "train",
        }
        for name, row in PARALLEL.items()
    ]  # fmt: skip
