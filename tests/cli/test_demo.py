"""`edgeft demo` from end to end, on few steps and few items."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_demo_ends_with_its_table_and_a_second_run_skips(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgeft", "demo", "--out", str(tmp_path / "demo"),
               "--steps", "12", "--limit", "60"]  # fmt: skip
    first = subprocess.run(command, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    rows = [line for line in first.stdout.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 5
    assert "fine-tuned, q4_k_m.gguf" in rows[-1]
    assert rows[-1].split("|")[-2].strip() in {"PASS", "FAIL", "INCONCLUSIVE"}
    assert "$ edgeft train-qlora --base smollm2-135m" in first.stderr
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    assert second.stderr.count("is complete, nothing to do") == 1 + 3 + 1
