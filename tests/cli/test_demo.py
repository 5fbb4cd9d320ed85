"""`edgeft demo` from end to end, on few steps and few items."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgeft.report import storage


@pytest.mark.slow
def test_demo_prints_its_table_and_a_second_run_skips_complete_steps(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgeft", "demo", "--out", str(tmp_path / "demo"),
               "--steps", "12", "--limit", "60"]  # fmt: skip
    first = subprocess.run(command, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    rows = [line for line in first.stdout.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 6
    assert rows[-1].startswith("| gptq-q4_0.gguf") and rows[2].startswith(
        "| base, instructions only"
    )
    outcome = first.stdout.strip().split(maxsplit=1)[0].rstrip(":")
    assert outcome in {"PASS", "FAIL", "INCONCLUSIVE"}
    made = storage.read(tmp_path / "demo/report/report.json")
    assert made.outcome == outcome and made.floor and made.arms[-2].fidelity
    assert outcome in (tmp_path / "demo/report/report.html").read_text(encoding="utf-8")
    assert "$ edgeft train-qlora --base smollm2-135m" in first.stderr
    before_training = first.stderr.partition("$ edgeft train-qlora")[0]
    assert "\nfine-tune: f16.gguf" in before_training
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    assert second.stderr.count("is complete, nothing to do") == 1 + 4 + 1
