"""Scores that other processes and a Ray cluster find are those that this process finds."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from edgeft.benchmarks.options import EvalOptions
from edgeft.benchmarks.quality import evaluate
from edgeft.benchmarks.quality.workers import _prefetch, open_workers
from edgeft.errors import ResourceError
from edgeft.export.pipeline import ExportOptions, export
from edgeft.release import GateOptions, run_gate


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> list[Path]:
    out = tmp_path_factory.mktemp("workers")
    options = ExportOptions(
        out=out, base=str(tiny_base), quants=("f16", "q8_0"), compare_live=False
    )
    return [artifact.path for artifact in export(options)]


def questions(folder: Path, name: str) -> EvalOptions:
    """Items of one test, so that none finds scores that another has cached."""
    path = folder / f"{name}.jsonl"
    rows = [{"prompt": f"{name} {i}", "answer": "x"} for i in range(3)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return EvalOptions(str(path), max_tokens=4, threads=1)


@pytest.mark.parametrize(
    ("jobs", "ray"), [(2, None), pytest.param(2, "local", marks=pytest.mark.slow)]
)
def test_several_answer_elsewhere(
    artifacts: list[Path], tmp_path: Path, jobs: int, ray: str | None
) -> None:
    options = questions(tmp_path, f"together {ray}")
    items = evaluate.load_items(options)
    assert not any(evaluate.cached_score(path, items) for path in artifacts)
    with open_workers(jobs, ray) as prefetch:
        assert prefetch
        prefetch(artifacts, items, options)
    for path in artifacts:
        cached = evaluate.cached_score(path, items)
        assert cached
        direct = evaluate.measure(path, items, EvalOptions(**vars(options) | {"no_cache": True}))
        assert (cached.replies, cached.values, cached.arm) == (
            direct.replies,
            direct.values,
            path.stem,
        )


def test_one_at_a_time_asks_nobody_else(artifacts: list[Path], tmp_path: Path) -> None:
    options = questions(tmp_path, "alone")
    items = evaluate.load_items(options)
    with open_workers() as prefetch:
        assert prefetch is None
    assert not any(evaluate.cached_score(path, items) for path in artifacts)


@pytest.mark.slow
def test_no_cluster_is_one_line() -> None:
    with (
        pytest.raises(ResourceError, match="no Ray cluster at 127.0.0.1:1"),
        open_workers(2, "127.0.0.1:1"),
    ):
        pass


def test_fresh_answers_are_given_once_each(artifacts: list[Path], tmp_path: Path) -> None:
    """By windows: all anew, though scores are kept, and none of them twice."""
    options = dataclasses.replace(questions(tmp_path, "fresh"), no_cache=True)
    items = evaluate.load_items(options)
    for path in artifacts:
        evaluate.measure(path, items, options)
    asked: list[Path] = []

    def run(calls: list[Any]) -> list[Any]:
        asked.extend(path for path, *_ in calls)
        return [evaluate.cached_score(path, items) for path, *_ in calls]

    prefetch = _prefetch(run, 1)
    prefetch(artifacts, items, options)
    prefetch(artifacts, items, options)
    prefetch(artifacts[1:], items, options)
    assert asked == artifacts


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_gate_asks_anew_where_it_should(
    artifacts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    options = dataclasses.replace(questions(tmp_path, f"gate {jobs}"), no_cache=True)
    measured: list[tuple[str, bool]] = []
    measure = evaluate.measure

    def seen(path: Path, items: Any, how: EvalOptions, few_shot: Any = None) -> Any:
        measured.append((path.stem, how.no_cache))
        return measure(path, items, how, few_shot)

    monkeypatch.setattr(evaluate, "measure", seen)
    with open_workers(jobs) as prefetch:
        run_gate(GateOptions((artifacts[1],), artifacts[0]), options, prefetch=prefetch)
    assert measured == [("f16", True), ("q8_0", jobs == 1)]
