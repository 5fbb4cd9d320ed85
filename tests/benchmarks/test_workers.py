"""Scores that other processes and a Ray cluster find are those that this process finds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeft.benchmarks import quality
from edgeft.benchmarks.quality import Asking
from edgeft.benchmarks.workers import workers
from edgeft.errors import ResourceError
from edgeft.export import ExportOptions, export


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> list[Path]:
    out = tmp_path_factory.mktemp("workers")
    options = ExportOptions(out=out, base=str(tiny_base), quants=("f16", "q8_0"), live=False)
    return [artifact.path for artifact in export(options)]


def questions(folder: Path, name: str) -> Asking:
    """Of its own, so that no test finds what another has kept."""
    path = folder / f"{name}.jsonl"
    rows = [{"prompt": f"{name} {i}", "answer": "x"} for i in range(3)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return Asking(str(path), max_tokens=4, threads=1)


@pytest.mark.parametrize(
    ("jobs", "ray"), [(2, None), pytest.param(2, "local", marks=pytest.mark.slow)]
)
def test_several_answer_elsewhere(
    artifacts: list[Path], tmp_path: Path, jobs: int, ray: str | None
) -> None:
    asking = questions(tmp_path, f"together {ray}")
    items = quality.load_items(asking)
    assert not any(quality.kept(path, items) for path in artifacts)
    with workers(jobs, ray) as together:
        together(artifacts, items, asking)
    for path in artifacts:
        found = quality.kept(path, items)
        assert found
        own = quality.measure(path, items, Asking(**vars(asking) | {"fresh": True}))
        assert (found.replies, found.values, found.arm) == (own.replies, own.values, path.stem)


def test_one_at_a_time_asks_nobody_else(artifacts: list[Path], tmp_path: Path) -> None:
    asking = questions(tmp_path, "alone")
    items = quality.load_items(asking)
    with workers() as together:
        together(artifacts, items, asking)
    assert not any(quality.kept(path, items) for path in artifacts)


@pytest.mark.slow
def test_no_cluster_is_one_line() -> None:
    with (
        pytest.raises(ResourceError, match="no Ray cluster at 127.0.0.1:1"),
        workers(2, "127.0.0.1:1"),
    ):
        pass
