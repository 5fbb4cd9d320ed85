"""The same inputs, options and seed give the same bytes, whatever the process and Python's hash seed.

A run of a stage is a fork of one process, so that only its number differs; that the hash seed does not matter
is shown by servers with other ones. Every stage is also run again after each fault (test_faults.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.faults import STAGES, Place, Server, content

Placed = Callable[[str], Place]
FAST = ("gguf over",)


@pytest.fixture(scope="module")
def other_seed() -> Server:  # type: ignore[misc]
    with Server("core", hash_seed=1) as server:
        yield server


@pytest.fixture(scope="module")
def other_seed_torch() -> Server:  # type: ignore[misc]
    with Server("all", hash_seed=1) as server:
        yield server


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in STAGES],
)
def test_a_stage_gives_the_same_bytes_with_another_hash_seed(
    place: Placed, name: str, request: pytest.FixtureRequest
) -> None:
    stage = place(name)
    torch = stage.stage.needs == "all"
    server: Server = request.getfixturevalue("other_seed_torch" if torch else "other_seed")
    stage.clean()
    code, _, output = server.run(stage.command, stage.folder)
    assert code in stage.stage.codes, output
    result = content(stage.folder)
    assert [key for key in {*result, *stage.after} if result.get(key) != stage.after.get(key)] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gguf", "hf", "onnx", "imatrix"])
def test_an_export_gives_the_same_bytes_with_other_threads(place: Placed, name: str) -> None:
    stage = place(name)
    stage.clean()
    command = stage.command.replace("--threads 1", "--threads 2")
    code, _, output = stage.server.run(command, stage.folder, env=environment(stage.folder))
    assert code in stage.stage.codes, output
    weights = (".gguf", ".safetensors", ".data", ".onnx")
    result = {n: data for n, data in content(stage.folder).items() if n.endswith(weights)}
    assert result and [n for n in result if result[n] != stage.after[n]] == []


def environment(folder: Path) -> dict[str, str]:
    return {"EDGEFT_HOME": str(folder / "home"), "OMP_NUM_THREADS": "2"}
