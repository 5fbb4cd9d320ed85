"""A call fails or the process is killed: the old result or the new one, one line, the next run completes.

Every call of every stage: `python tests/helpers/faults.py all --kills 70`.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeft.errors import machine_error
from helpers.faults import FAULTS, KILLS, STAGES, Place, half_written

Placed = Callable[[str], Place]
slow = pytest.mark.slow
FAST = ("gguf over", "hf over", "clean", "report")
FAST_POINTS = 3


@pytest.mark.parametrize("name", FAST)
def test_a_fault_at_some_calls(place: Placed, name: str) -> None:
    stage = place(name)
    draw = random.Random(name)
    numbers = draw.sample(range(1, stage.calls + 1), FAST_POINTS)
    faults = (draw.choice(FAULTS), draw.choice(FAULTS), draw.choice(KILLS))
    problems = [p for point in zip(numbers, faults, strict=True) for p in stage.spoil(*point)]
    assert problems == []


@slow
@pytest.mark.parametrize("name", STAGES)
def test_a_fault_at_every_call(place: Placed, name: str) -> None:
    stage = place(name)
    numbers = range(1, stage.calls + 1)
    assert [p for n in numbers for p in stage.spoil(n, FAULTS[n % len(FAULTS)])] == []


@slow
@pytest.mark.parametrize("name", STAGES)
def test_a_kill_at_random_calls(place: Placed, name: str) -> None:
    """Of all stages together a thousand."""
    stage, draw = place(name), random.Random(name)
    numbers = [draw.randint(1, stage.calls) for _ in range(1 + 1000 // len(STAGES))]
    assert [p for n in numbers for p in stage.spoil(n, draw.choice(KILLS))] == []


def test_what_is_half_written_is_seen(tmp_path: Path, place: Placed) -> None:
    stage = place("clean")
    stage.clean()
    assert list(stage.problems_of_next_run()) == []
    before, after = stage.before, dict(stage.after)
    assert list(half_written(stage.folder, before, after, cut_off=False)) == []
    (stage.folder / "clean.jsonl").write_bytes(after["clean.jsonl"][:-1])
    problems = list(half_written(stage.folder, before, after, cut_off=True))
    assert (
        len(problems) == 2 and "neither old nor new" in problems[0] and "bytes, not" in problems[1]
    )
    lost = list(half_written(tmp_path, {"a": b"", "b.manifest.json": b""}, {}, cut_off=True))
    assert lost == ["a is lost", "b.manifest.json is lost"]


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (RuntimeError("I/O error: No space left on device (os error 28)"), errno.ENOSPC),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"), errno.EIO),
        (OSError("16 requested and 0 written"), errno.EIO),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), errno.EDQUOT),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), None),
    ],
)  # fmt: skip
def test_what_libraries_say_of_a_full_machine(error: Exception, number: int | None) -> None:
    problem = machine_error(error)
    assert problem and getattr(problem, "errno", None) == number
    assert isinstance(problem, OSError if number else MemoryError)
    assert machine_error(RuntimeError("shape mismatch")) is None
    assert machine_error(OSError("a defect")) is None
