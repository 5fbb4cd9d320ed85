"""The study of ways to save memory: every row is a run that edgeft accepts, and the table has all."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeft.benchmarks.studies.memory_techniques import TECHNIQUES, Row, table
from edgeft.benchmarks.studies.training_methods import arguments


def test_the_table_has_a_line_for_each_training() -> None:
    rows = [Row("plain", 2000.4, 1500.0, 99.6, [2.5, 1.25]), Row("bf16", 900.0, 800.0, 50, [2, 1])]
    lines = table(rows).splitlines()
    assert "| plain | 2,000 | 1,500 | 100 | 2.5000 | 1.2500 |" in [
        " ".join(x.split()) for x in lines
    ]
    assert "at 2" in lines[0] and len(lines) == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", TECHNIQUES)
def test_every_technique_trains(
    name: str, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeft.benchmarks.studies import memory_techniques as study

    words = ["--base", str(tiny_base), "--out", str(tmp_path), "--steps", "2", "--batch-size", "2"]
    row = study.measure(name, arguments("").parse_args(words))
    assert row.resident_mb > row.anonymous_mb > 100 and len(row.losses) == 2
    assert not list(tmp_path.iterdir())
