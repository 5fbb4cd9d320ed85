"""Options of a run -> what several processes cannot train is refused before anything is loaded."""

from __future__ import annotations

from edgeft.errors import InputError
from edgeft.train.optimizers import optimizer_row
from edgeft.train.optimizers.table import NOT_TRIED
from edgeft.train.options import TrainOptions
from edgeft.train.registry import OBJECTIVES

ONE_PROCESS = {
    "ship": "the file's values are computed in one process",
    "offload_activations": NOT_TRIED,
}
"""field of TrainOptions -> why it is for one process"""


def check_parallel(options: TrainOptions, objective: str, watched: bool = False) -> None:
    """InputError for an option, an optimizer or an objective that is for one process.

    `watched`: a sweep decides at each evaluation whether the run goes on.
    """
    if options.processes == 1:
        return
    if watched:
        raise InputError("a trial of a sweep is one process", "--jobs in place of --processes")
    if options.threads == "auto":
        raise InputError("--threads auto is for one process", "a number, or all")
    for name, reason in ONE_PROCESS.items():
        if getattr(options, name):
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} is for one process: {reason}", "leave --processes out")
    if reason := optimizer_row(options.optimizer).one_process:
        raise InputError(
            f"--optimizer {options.optimizer} is for one process: {reason}", "--optimizer adamw"
        )
    if not OBJECTIVES[objective].processes:
        several = ", ".join(name for name, row in OBJECTIVES.items() if row.processes)
        raise InputError(f"--objective {objective} is for one process", f"several train {several}")
