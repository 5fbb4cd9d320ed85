"""The study of several processes: memory of the largest process of a run, and the table."""

from __future__ import annotations

import sys

import pytest

from edgeft.benchmarks.studies.processes import Row, report, sampled
from edgeft.errors import InputError

pytestmark = pytest.mark.unit
CHILD = "import time; block = bytearray(60_000_000); block[::4096] = b'x' * len(block[::4096]); time.sleep(.5)"  # fmt: skip


def test_the_largest_of_a_run_and_its_children_counts() -> None:
    program = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}], check=True)"
    )
    peak, steady = sampled([sys.executable, "-c", program])
    assert 60e6 < steady <= peak < 120e6
    with pytest.raises(InputError, match="failed"):
        sampled([sys.executable, "-c", "raise SystemExit(3)"])


def test_the_table_names_what_is_divided() -> None:
    rows = [Row("one", [2.0, 1.0], 0, 8e2, 7e2, 10), Row("fsdp2", [2.0, 1.0], 1e-4, 6e2, 5e2, 9)]
    lines = report(rows).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["1", "2, fsdp2"]
    assert "0.0001" in lines[3] and "600" in lines[3] and "500" in lines[3]
