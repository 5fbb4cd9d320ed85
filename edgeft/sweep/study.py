"""Optuna: trials so far -> the values of the next one, and whether a running one is worth its time.

    study = Study(options, trials)
    values = study.propose(number)          # None where nothing is left to try
    study.begin(number, values)
    study.goes_on(number, curve)            # False: prune
    study.end(trial)

The study is in memory and is built again from the records of the trials, which are the truth. The values
of trial n follow from the seed and the trials before it, so that an interrupted sweep proposes what
it would have proposed anyway.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from edgeft.errors import require
from edgeft.sweep import space
from edgeft.sweep.options import DEFAULT_TRIALS, Range, SweepOptions
from edgeft.sweep.space import Values
from edgeft.sweep.trial import Curve, Trial

ATTEMPTS = 50
"""proposals for a trial, until one is new"""
STAGE = "completed_rung_"
"""Optuna's prefix of what SuccessiveHalvingPruner remembers of a trial"""


class Study:
    """The trials of a sweep as Optuna sees them."""

    def __init__(self, options: SweepOptions, trials: Sequence[Trial]) -> None:
        """MissingExtra where Optuna is not installed."""
        self._optuna: Any = require("optuna", "sweep")
        self._optuna.logging.set_verbosity(self._optuna.logging.WARNING)
        self._options = options
        self._distributions = {
            name: self._distribution(values) for name, values in options.space.items()
        }
        self._grid = list(space.combinations(options.space)) if options.is_grid else []
        random.Random(options.seed).shuffle(self._grid)
        self._study = self._optuna.create_study(
            direction="minimize" if options.lower_is_better else "maximize",
            pruner=self._pruner(),
        )
        self._open: dict[int, Any] = {}
        self._tried: list[Values] = [trial.values for trial in trials]
        for trial in trials:
            if trial.status in ("complete", "pruned"):
                self._study.add_trial(self._frozen(trial))

    def total(self) -> int:
        """Trials of the whole sweep."""
        options = self._options
        count = options.trials or (len(self._grid) if options.is_grid else DEFAULT_TRIALS)
        return int(min(count, space.size(options.space)))

    def propose(self, number: int) -> Values | None:
        """Values that no trial had; None where there are none."""
        if self._options.is_grid:
            return next((values for values in self._grid if values not in self._tried), None)
        for attempt in range(ATTEMPTS):
            self._study.sampler = self._sampler(number, attempt)
            trial = self._study.ask(self._distributions)
            self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
            if trial.params not in self._tried:
                return {name: trial.params[name] for name in self._options.space}
        if space.size(self._options.space) == float("inf"):
            return None
        return next(v for v in space.combinations(self._options.space) if v not in self._tried)

    def begin(self, number: int, values: Values) -> None:
        """Open the trial that `report` and `end` then name."""
        self._tried.append(values)
        self._study.enqueue_trial(values)
        self._open[number] = self._study.ask(self._distributions)

    def goes_on(self, number: int, curve: Curve) -> bool:
        """Whether the trial with this curve so far is among those that pass the stage.

        The pruner counts evaluations, not steps: a trial with larger batches has fewer steps.
        """
        trial = self._open[number]
        trial.report(curve[-1][1], len(curve))
        return not trial.should_prune()

    def stages(self, number: int) -> dict[str, float]:
        """What the pruner remembers of an open trial."""
        frozen = self._study.get_trials(deepcopy=False)[self._open[number].number]
        attributes = frozen.system_attrs.items()
        return {key: value for key, value in attributes if key.startswith(STAGE)}

    def end(self, trial: Trial) -> None:
        """Close an open trial."""
        state = self._optuna.trial.TrialState
        states = {"complete": state.COMPLETE, "pruned": state.PRUNED, "failed": state.FAIL}
        self._study.tell(self._open.pop(trial.number), trial.score, states[trial.status])

    def _pruner(self) -> Any:
        pruners, factor = self._optuna.pruners, self._options.reduction_factor
        if self._options.pruner == "none":
            return pruners.NopPruner()
        return pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=factor)

    def _sampler(self, number: int, attempt: int) -> Any:
        seed = random.Random(f"{self._options.seed} {number} {attempt}").getrandbits(32)
        samplers = self._optuna.samplers
        if self._options.sampler == "random":
            return samplers.RandomSampler(seed)
        return samplers.TPESampler(seed=seed, constant_liar=self._options.is_parallel)

    def _distribution(self, values: Any) -> Any:
        kinds = self._optuna.distributions
        if not isinstance(values, Range):
            return kinds.CategoricalDistribution([space.plain(value) for value in values])
        if values.whole:
            return kinds.IntDistribution(int(values.low), int(values.high), log=values.log)
        return kinds.FloatDistribution(values.low, values.high, log=values.log)

    def _frozen(self, trial: Trial) -> Any:
        state = self._optuna.trial.TrialState
        return self._optuna.trial.create_trial(
            state=state.COMPLETE if trial.status == "complete" else state.PRUNED,
            value=trial.score,
            params=trial.values,
            distributions=self._distributions,
            intermediate_values={i: value for i, (_, value) in enumerate(trial.curve, 1)},
            system_attrs=dict(trial.stages),
        )
