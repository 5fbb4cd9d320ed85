"""The trials of a sweep: which run, which end early, what stays on the disk, what goes on later."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from edgeft import files, store
from edgeft.benchmarks.options import EvalOptions
from edgeft.benchmarks.suites import load_suite
from edgeft.errors import InputError, StaleError
from edgeft.sweep import run, space
from edgeft.sweep.options import Range, SweepOptions
from edgeft.sweep.trial import Trial, folder_of, read_trials
from edgeft.train.options import TrainOptions
from helpers.sweeping import FakeWorkers, flat, sweep_options

Run = Callable[..., run.SweepResult]


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> FakeWorkers:
    fake = FakeWorkers()

    @contextlib.contextmanager
    def opened(ray: str | None = None) -> Iterator[FakeWorkers]:
        try:
            yield fake
        finally:
            fake.close()

    monkeypatch.setattr(run, "open_workers", opened)
    monkeypatch.setattr("os.fsync", lambda handle: None)  # a hundred for a sweep
    monkeypatch.setattr(space, "check", lambda options: {"base": "identity"})
    return fake


@pytest.fixture
def options(tiny_base: Path, tiny_chats: Path, tmp_path: Path) -> Callable[..., SweepOptions]:
    def make(name: str = "out", **changes: Any) -> SweepOptions:
        return sweep_options(tiny_base, tiny_chats, tmp_path / name, **changes)

    return make


Options = Callable[..., SweepOptions]


def interrupt_after(changes: int) -> Callable[[Sequence[Trial]], None]:
    """A watcher that ends the sweep at a change of its trials."""
    seen = [0]

    def watch(trials: Sequence[Trial]) -> None:
        seen[0] += 1
        if seen[0] == changes:
            raise KeyboardInterrupt

    return watch


def statuses(result: run.SweepResult) -> list[str]:
    return [trial.status for trial in result.trials]


def test_a_grid_runs_every_combination_once_and_keeps_the_best(
    workers: FakeWorkers, options: Options
) -> None:
    result = run.sweep(options(pruner="none"))
    tried = {(c.run.options.learning_rate, c.run.options.lora_r) for c in workers.started}
    assert len(workers.started) == len(tried) == 6
    assert result.best and result.best.values == {"learning_rate": 1e-3, "lora_r": 8}
    assert result.best.score == pytest.approx(2.62) and result.best.score_step == 40
    assert result.ranked()[0] is result.best and result.ranked()[1].values["lora_r"] == 4
    adapter = result.adapter
    assert adapter and store.read_manifest(adapter)
    assert adapter.resolve() == folder_of(result.output, result.best.number)
    folders = [path for path in (result.output / "trials").iterdir() if path.is_dir()]
    assert folders == [adapter.resolve()], "the others are not kept"
    raw = json.loads((result.output / "sweep.json").read_text())
    assert raw["best"]["number"] == result.best.number and len(raw["trials"]) == 6
    assert f"--output {adapter.resolve()}" in result.command and "--lora-r 8" in result.command


def test_keep_all_leaves_every_complete_result(workers: FakeWorkers, options: Options) -> None:
    result = run.sweep(options(pruner="none", keep="all"))
    assert all(store.read_manifest(folder_of(result.output, n)) for n in range(6))


def test_bad_trials_end_early_and_leave_nothing(workers: FakeWorkers, options: Options) -> None:
    result = run.sweep(options())
    pruned = [trial for trial in result.trials if trial.status == "pruned"]
    assert pruned and all(len(trial.curve) < 4 and trial.score is None for trial in pruned)
    assert result.best and result.best.values == {"learning_rate": 1e-3, "lora_r": 8}
    for trial in pruned:
        assert not folder_of(result.output, trial.number).exists()
        assert [c.number for c in workers.started].count(trial.number) == 1
    count = len(workers.started)
    assert run.sweep(options()).to_json() == result.to_json()
    assert len(workers.started) == count, "neither complete nor pruned trials run again"


@pytest.mark.parametrize(("sampler", "changes"), [("grid", 9), ("tpe", 2), ("random", 12)])
def test_an_interrupted_sweep_ends_as_one_that_was_not(
    workers: FakeWorkers, options: Options, sampler: Any, changes: int
) -> None:
    tried: dict[str, Any] = {"learning_rate": (1e-4, 1e-3, 5e-3), "lora_r": (4, 8)}
    if sampler != "grid":
        tried["learning_rate"] = Range(1e-5, 1e-2, log=True)
    chosen = options(sampler=sampler, space=tried, trials=5)
    whole = run.sweep(dataclasses.replace(chosen, output=chosen.output.with_name("whole")))
    with pytest.raises(KeyboardInterrupt):
        run.sweep(chosen, interrupt_after(changes))
    ended = [t.number for t in read_trials(chosen.output) if t.status != "running"]
    workers.started.clear()
    result = run.sweep(chosen)
    assert [t.to_json() for t in result.trials] == [t.to_json() for t in whole.trials]
    assert {call.number for call in workers.started} == set(range(5)) - set(ended)


def test_more_trials_go_on_from_fewer(workers: FakeWorkers, options: Options) -> None:
    run.sweep(options(trials=2, pruner="none"))
    result = run.sweep(options(trials=4, pruner="none"))
    assert len(result.trials) == 4 and [c.number for c in workers.started] == [0, 1, 2, 3]


def test_a_trial_that_fails_is_in_the_table_and_runs_again_later(
    workers: FakeWorkers, options: Options
) -> None:
    workers.errors[1] = "out of memory"
    result = run.sweep(options(pruner="none"))
    assert statuses(result) == ["complete", "failed", *["complete"] * 4]
    assert result.trials[1].error == "out of memory"
    workers.errors.clear()
    workers.started.clear()
    result = run.sweep(options(pruner="none"))
    assert statuses(result) == ["complete"] * 6 and [c.number for c in workers.started] == [1]


def test_no_complete_trial_is_an_error_with_its_reason(
    workers: FakeWorkers, options: Options
) -> None:
    workers.errors |= dict.fromkeys(range(6), "out of memory")
    with pytest.raises(InputError, match=r"no trial is complete: out of memory \(.*\*.log\)"):
        run.sweep(options())


def test_a_measure_that_is_no_number_ends_its_trial(workers: FakeWorkers, options: Options) -> None:
    def diverging(chosen: TrainOptions) -> list[float]:
        curve = flat(chosen)
        return [curve[0], float("nan")] if chosen.learning_rate > 1e-3 else curve

    workers.curve = diverging
    result = run.sweep(options(pruner="none"))
    ended = [trial for trial in result.trials if trial.values["learning_rate"] == 5e-3]
    assert [t.status for t in ended] == ["pruned", "pruned"]
    assert ended[0].error == "validation loss nan at step 20" and len(ended[0].curve) == 1
    json.loads((result.output / "sweep.json").read_text(), parse_constant=pytest.fail)


def test_the_score_is_that_of_the_weights_that_were_kept(
    workers: FakeWorkers, options: Options
) -> None:
    workers.kept_step = 20
    result = run.sweep(options(pruner="none"))
    assert result.best and result.best.score_step == 20
    assert result.best.score == pytest.approx(2.82)


def test_the_highest_accuracy_wins_on_a_validation_split(
    workers: FakeWorkers, options: Options
) -> None:
    chosen = options(measure="accuracy", items=EvalOptions("smart_home"), pruner="none")
    result = run.sweep(chosen)
    assert result.best and result.best.values == {"learning_rate": 5e-3, "lora_r": 4}
    suite = load_suite("smart_home")
    asked = {call.items.items for call in workers.started if call.items}
    assert asked == {str(suite.validation)}
    assert f"--eval-items {suite.validation} --eval-scorer json" in result.command


def test_a_test_split_chooses_nothing(workers: FakeWorkers, options: Options) -> None:
    items = EvalOptions(str(load_suite("smart_home").test), scorer="json")
    with pytest.raises(InputError, match=r"test\.jsonl is a test split"):
        run.sweep(options(measure="accuracy", items=items))
    assert not workers.started


def test_jobs_run_at_a_time_and_share_the_cores(
    workers: FakeWorkers, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))
    run.sweep(options(jobs=3))
    assert workers.most_at_a_time == 3 and len(workers.started) == 6
    assert {call.run.options.threads for call in workers.started} == {"2"}


def test_a_winner_whose_result_is_gone_trains_again(workers: FakeWorkers, options: Options) -> None:
    result = run.sweep(options(pruner="none"))
    assert result.adapter and result.best
    store.manifest_path(result.adapter).unlink()
    workers.started.clear()
    again = run.sweep(options(pruner="none"))
    assert result.best.number in {call.number for call in workers.started}
    assert again.best and again.best.values == result.best.values and again.adapter
    assert store.read_manifest(again.adapter)


def test_another_sweep_and_foreign_folders_are_left_alone(
    workers: FakeWorkers, options: Options, tmp_path: Path
) -> None:
    first = run.sweep(options())
    for changes, name in (
        ({"seed": 1}, "seed"),
        ({"space": {"lora_r": (4, 16)}}, "learning-rate, lora-r"),
        ({"run": {"steps": 7}}, "steps"),
        ({"reduction_factor": 3}, "reduction-factor"),
    ):
        with pytest.raises(StaleError, match=f"holds a sweep with another {name}"):
            run.sweep(options(**changes))
    assert json.loads((first.output / "sweep.json").read_text())["best"]
    over = run.sweep(options(seed=1, overwrite=True, trials=2))
    assert len(over.trials) == 2 and not folder_of(over.output, 2).with_suffix(".json").exists()
    with (
        files.claimed(over.output),
        ThreadPoolExecutor(1) as other,
        pytest.raises(StaleError, match="another run"),
    ):
        other.submit(run.sweep, options(seed=1, trials=3)).result()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    with pytest.raises(StaleError, match="was not made by this command"):
        run.sweep(options("mine", overwrite=True))
    assert (tmp_path / "mine" / "letter.txt").exists()


def test_the_page_has_the_table_the_curves_and_the_winner(
    workers: FakeWorkers, options: Options
) -> None:
    result = run.sweep(options(run={"columns": ("prompt=<b>x",)}))
    page = (result.output / "sweep.html").read_text()
    assert result.best and f"Trial {result.best.number} wins" in page
    assert page.count("<polyline") == 6 and page.count('scope="row"') == 6
    assert "prompt=&lt;b&gt;x" in page and "<b>x" not in page and "<script" not in page
