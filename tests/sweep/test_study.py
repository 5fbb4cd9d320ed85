"""What Optuna proposes and prunes, also when the study is built again from records."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from edgeft.errors import InputError
from edgeft.sweep import study as studies
from edgeft.sweep.options import Range, SweepOptions
from edgeft.sweep.study import Study
from edgeft.sweep.trial import Trial

LISTS: dict[str, Any] = {"data": (Path("a.jsonl"), Path("b.jsonl")), "lora_r": (4, 8, 16)}


def options(space: dict[str, Any], **changes: Any) -> SweepOptions:
    return SweepOptions({}, space, Path("out"), **changes)


def ended(study: Study, number: int, values: dict[str, Any], curve: list[float]) -> Trial:
    """A trial with a curve until it is pruned or complete."""
    study.begin(number, values)
    points: tuple[tuple[int, float], ...] = ()
    for i, value in enumerate(curve, 1):
        points = (*points, (i * 10, value))
        if not study.goes_on(number, points) and i < len(curve):
            trial = Trial(number, values, "pruned", points)
            break
    else:
        trial = Trial(number, values, "complete", points, score=points[-1][1])
    trial = dataclasses.replace(trial, stages=study.stages(number))
    study.end(trial)
    return trial


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_lists_are_tried_without_repetition(sampler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies, "ATTEMPTS", 2)  # so that the rest is listed, too
    study = Study(options(LISTS, sampler=sampler, trials=50), ())
    assert study.total() == 6
    tried = []
    for number in range(6):
        values = study.propose(number)
        assert values
        tried.append(values)
        ended(study, number, values, [1.0])
    assert {(v["data"], v["lora_r"]) for v in tried} == {
        (data, rank) for data in ("a.jsonl", "b.jsonl") for rank in (4, 8, 16)
    }


def test_ranges_hold_their_bounds_and_the_seed_decides() -> None:
    space = {"learning_rate": Range(1e-5, 1e-3, log=True), "lora_r": Range(4, 6, whole=True)}

    def drawn(seed: int) -> list[Any]:
        study = Study(options(space, sampler="random", seed=seed), ())
        assert study.total() == 16
        return [study.propose(number) for number in range(16)]

    values = drawn(0)
    assert values == drawn(0) != drawn(1)
    rates = [v["learning_rate"] for v in values]
    assert all(1e-5 <= rate <= 1e-3 for rate in rates) and min(rates) < 5e-5
    assert {v["lora_r"] for v in values} == {4, 5, 6}


def test_a_range_that_is_used_up_ends_the_sweep() -> None:
    study = Study(options({"lora_r": Range(4, 5, whole=True)}, sampler="random"), ())
    for number in range(2):
        values = study.propose(number)
        assert values
        ended(study, number, values, [1.0])
    assert study.propose(2) is None


def test_halving_compares_with_the_trials_of_earlier_runs() -> None:
    chosen = options(LISTS)
    curves = [
        [3.0, 2.0, 1.5, 1.2],
        [3.5, 3.0, 2.5, 2.0],
        [2.9, 2.5, 2.4, 2.3],
        [2.8, 1.9, 1.4, 1.1],
    ]
    grid = Study(chosen, ())._grid[:4]

    def statuses(rebuilt: bool) -> list[tuple[str, int]]:
        study = Study(chosen, ())
        trials: list[Trial] = []
        for number, curve in enumerate(curves):
            if rebuilt:
                study = Study(chosen, [Trial.from_json(trial.to_json()) for trial in trials])
            trials.append(ended(study, number, grid[number], curve))
        return [(trial.status, len(trial.curve)) for trial in trials]

    assert statuses(rebuilt=False) == statuses(rebuilt=True)
    # The second is worse than the first at once; the third is worse after two evaluations.
    assert statuses(True) == [("complete", 4), ("pruned", 1), ("pruned", 2), ("complete", 4)]


def test_without_a_pruner_every_trial_is_complete() -> None:
    study = Study(options(LISTS, pruner="none"), ())
    assert ended(study, 0, study._grid[0], [1.0, 1.0]).status == "complete"
    assert ended(study, 1, study._grid[1], [9.0, 9.0]).status == "complete"


def test_contradicting_options_are_refused() -> None:
    wide = {"learning_rate": Range(1e-5, 1e-3)}
    for changes, message in (
        ({"space": {}}, "nothing to sweep"),
        ({"space": wide, "sampler": "grid"}, "learning-rate is a range, and a grid needs lists"),
        ({"space": LISTS, "measure": "accuracy"}, "needs items to answer"),
        ({"space": LISTS, "reduction_factor": 1}, "less than 2"),
    ):
        with pytest.raises(InputError, match=message):
            options(**{"space": LISTS} | changes)
