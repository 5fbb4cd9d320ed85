"""The options of a sweep. The string after a field is its option's help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgeft.benchmarks.options import EvalOptions
from edgeft.errors import InputError

DEFAULT_TRIALS = 16


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    log: bool = False
    """drawn evenly by their logarithm"""
    whole: bool = False
    """whole numbers only"""

    def to_json(self) -> dict[str, Any]:
        return vars(self)


Space = Mapping[str, "tuple[Any, ...] | Range"]
"""field of TrainOptions, `method` or `objective` -> the values that are tried"""


@dataclass(frozen=True)
class SweepOptions:
    """What is tried, and how: the options of `edgeft sweep`."""

    run: Mapping[str, Any]
    """fields of TrainOptions but `output`, `method` and `objective`, as `resolve_run` takes them"""
    space: Space
    output: Path
    """Folder for the trials, the table and the winner."""
    items: EvalOptions | None = None
    """items that every trial answers at each evaluation"""
    trials: int | None = None
    """Trials in all. Default: every combination of a grid, else 16."""
    sampler: Literal["auto", "grid", "tpe", "random"] = "auto"
    """How values are proposed: grid = every combination, in a shuffled order, tpe = Optuna's
    Tree-structured Parzen Estimator, auto = grid where every option has a list, else tpe."""
    seed: int = 0
    """Seed of the proposals; that of a training is train's option."""
    measure: Literal["loss", "accuracy"] = "loss"
    """What the winner is chosen by: the validation loss, or the accuracy on the file's eval-items."""
    pruner: Literal["asha", "none"] = "asha"
    """How bad trials end early: asha = asynchronous successive halving, after 1, 2, 4, … evaluations."""
    reduction_factor: int = 2
    """One of so many trials passes each stage of asha; the stages lie at powers of it."""
    jobs: int = 1
    """Trials at a time, with the cores divided among them; with --ray, 1 = all."""
    ray: str | None = None
    """Address of a Ray cluster where the trials run; local starts one."""
    keep: Literal["best", "all"] = "best"
    """Results that stay on the disk: the winner's, or those of all complete trials."""
    overwrite: bool = False
    """Replace the sweep that --output holds."""

    def __post_init__(self) -> None:
        """InputError for values outside their range, and for values that contradict each other."""
        if not self.space:
            raise InputError(
                "there is nothing to sweep", "[sweep] with learning-rate = [1e-4, 5e-4]"
            )
        if self.reduction_factor < 2:
            raise InputError(f"--reduction-factor {self.reduction_factor} is less than 2")
        ranges = [name for name, values in self.space.items() if isinstance(values, Range)]
        if self.sampler == "grid" and ranges:
            name = ranges[0].replace("_", "-")
            raise InputError(
                f"{name} is a range, and a grid needs lists", "--sampler tpe, or a list"
            )
        if self.measure == "accuracy" and self.items is None:
            raise InputError("--measure accuracy needs items to answer", "eval-items in the file")

    @property
    def is_grid(self) -> bool:
        lists = not any(isinstance(values, Range) for values in self.space.values())
        return self.sampler == "grid" or (self.sampler == "auto" and lists)

    @property
    def is_parallel(self) -> bool:
        return self.jobs > 1 or self.ray is not None

    @property
    def lower_is_better(self) -> bool:
        return self.measure == "loss"
