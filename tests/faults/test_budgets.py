"""--max-memory and --max-disk: refused at once with the figure that is needed, and inside it with that."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgeft import machine
from edgeft.errors import ResourceError
from edgeft.machine import Budget
from helpers.faults import Place

Placed = Callable[[str], Place]
REFUSED_WITHIN_S = 5
"""of a processor"""
UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}
STAGES_OF = {
    "--max-memory 20M": ("train", "gguf over", "bench", "gptq"),
    "--max-disk 20k": ("train", "gguf over", "gptq"),
}
CASES = [
    pytest.param(name, limit, marks=() if name == "gguf over" else pytest.mark.slow)
    for limit, names in STAGES_OF.items()
    for name in names
]


@pytest.mark.parametrize(("name", "limit"), CASES)
def test_too_small_a_budget_is_refused_at_once_and_the_figure_that_it_names_is_enough(
    place: Placed, name: str, limit: str
) -> None:
    stage = place(name)
    stage.clean()
    code, _, output = stage.server.run(f"{stage.command} {limit}", stage.folder)
    pattern = r"edgeft: error: .* needs (?:about )?([\d.]+) (\w+) of (?:memory, 20.0 MB is|disk, more than)"
    match = re.search(pattern, output)
    assert code == 1 and match, output
    assert stage.server.cpu_s < REFUSED_WITHIN_S
    figure = int(float(match[1]) * 1.1 * UNITS[match[2]]) + 1000
    enough = f"{limit.split()[0]} {figure}"
    code, _, output = stage.server.run(f"{stage.command} {enough}", stage.folder)
    assert code in stage.stage.codes, output
    if "disk" in limit:
        assert sum(p.stat().st_size for p in stage.folder.rglob("*") if p.is_file()) <= figure


@pytest.mark.unit
def test_memory_beyond_the_budget_is_refused_by_the_kernel() -> None:
    size = 64_000_000
    used = machine.kilobytes("/proc/self/status")["RssAnon"]
    with machine.limited(Budget(max_memory=used + 3 * size // 2)):
        machine.hold_memory()
        np.ones(size, np.uint8)
        with pytest.raises(MemoryError):
            np.ones(3 * size, np.uint8)
    np.ones(3 * size, np.uint8)


@pytest.mark.unit
def test_a_budget_is_what_the_machine_has(tmp_path: Path) -> None:
    with machine.limited(Budget(10**6, 10**6)):
        assert machine.available_memory() == 10**6
        machine.preflight(tmp_path, "training", disk=10**6, memory=10**6)
        with pytest.raises(
            ResourceError, match=r"training needs 1.1 MB of disk, more than --max-disk 1.0 MB"
        ):
            machine.preflight(tmp_path, "training", disk=1_100_000)
        with pytest.raises(
            ResourceError, match=r"needs about 1.1 MB of memory, 1.0 MB is available"
        ):
            machine.preflight(tmp_path, "training", memory=1_100_000)
    assert machine.available_memory() > 10**6
