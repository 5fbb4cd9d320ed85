"""The files of finished blocks: what they hold, and how a run continues with them."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Family
from safetensors.numpy import save

from edgeft.errors import ProofError
from edgeft.gptq import blocks
from edgeft.gptq import quantize as driver
from edgeft.gptq.quantize import Calibration, linears, quantize_blocks
from edgeft.gptq.solver import Grid, UniformGrid
from edgeft.merge.view import Merged, open_merged

GRID = UniformGrid(4, 32, True)


@pytest.fixture
def merged(make: Family) -> Merged:
    base, adapter, _ = make("llama")
    return open_merged(base, adapter)


@pytest.fixture
def solved_layers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Columns of every matrix that is solved."""
    seen: list[int] = []
    real = driver.solve

    def counted(weight: Any, *more: Any) -> Any:
        seen.append(weight.shape[1])
        return real(weight, *more)

    monkeypatch.setattr(driver, "solve", counted)
    yield seen


def conversations(merged: Merged, *lengths: int, seed: int = 0) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    return [draw.integers(0, merged.vocabulary, length).tolist() for length in lengths]


def every(merged: Merged, grid: Grid = GRID) -> dict[str, Grid]:
    return dict.fromkeys(linears(merged), grid)


def hashes(work: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(work.glob("block-*"))
    }


def test_finished_blocks_are_not_quantized_again(
    merged: Merged, solved_layers: list[int], tmp_path: Path
) -> None:
    calibration = Calibration(conversations(merged, 200, 90, 150), tmp_path / "work")
    weights = quantize_blocks(merged, every(merged), calibration, threads=1)
    assert len(solved_layers) == 2 * 4, "q, k and v read the same, gate and up, too"
    for name in linears(merged):
        stored = weights.read(name)
        assert name in weights and stored["codes"].shape == merged.shapes[name]
        weight = merged.tensor(name)
        assert np.abs(GRID.values(stored) - weight).mean() < 0.2 * np.abs(weight).mean()
        some = weights.read(name, np.array([3, 1]))
        assert np.array_equal(some["codes"], stored["codes"][[3, 1]])
    assert "model.embed_tokens.weight" not in weights
    assert weights.facts() == {"quantized": 14, "rounded": 0, "damp": 0.01}
    before = hashes(tmp_path / "work")
    solved_layers.clear()
    again = quantize_blocks(merged, every(merged), calibration, threads=1)
    assert not solved_layers and hashes(tmp_path / "work") == before
    assert again.facts() == weights.facts()


@pytest.mark.parametrize("case", ["llama", "mixtral"])
def test_interrupted_run_gives_the_same_result(
    make: Family, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter, _ = make(case)
    merged = open_merged(base, adapter)
    sequences = conversations(merged, 200, 90, 150)
    quantize_blocks(merged, every(merged), Calibration(sequences, tmp_path / "whole"), threads=1)
    parts = Calibration(sequences, tmp_path / "parts")
    with monkeypatch.context() as patch:
        patch.setattr(blocks.Block, "run", stop)
        with pytest.raises(KeyboardInterrupt):
            quantize_blocks(merged, every(merged), parts, threads=1)
    assert len(hashes(tmp_path / "parts")) == 1
    quantize_blocks(merged, every(merged), parts, threads=1)
    assert hashes(tmp_path / "parts") == hashes(tmp_path / "whole")
    monkeypatch.setattr(blocks, "HESSIAN_BYTES", 1)
    one = Calibration(sequences, tmp_path / "one", offload=True)
    quantize_blocks(merged, every(merged), one, threads=1)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "whole"), "one Hessian at a time"


def stop(block: blocks.Block) -> None:
    raise KeyboardInterrupt


DIES = """
import os, signal, sys
from pathlib import Path
from edgeft import gptq, merge
def dies(path, data):
    if "block-0001" not in path.name:
        return real(path, data)
    real(path, data[: len(data) // 2])
    os.kill(os.getpid(), signal.SIGKILL)
real, Path.write_bytes = Path.write_bytes, dies
merged = merge.open_merged(*map(Path, {folders!r}))
grids = dict.fromkeys(gptq.linears(merged), gptq.UniformGrid(4, 32, True))
gptq.quantize_blocks(merged, grids, gptq.Calibration({sequences!r}, Path({work!r})), threads=1)
"""


@pytest.mark.slow
def test_killed_run_gives_the_same_result(
    make: Family, merged: Merged, solved_layers: list[int], tmp_path: Path
) -> None:
    """In a process of its own, in the middle of writing the second block."""
    sequences = conversations(merged, 200, 90, 150)
    quantize_blocks(merged, every(merged), Calibration(sequences, tmp_path / "whole"), threads=1)
    work, folders = tmp_path / "killed", [str(folder) for folder in make("llama")[:2]]
    code = DIES.format(folders=folders, sequences=sequences, work=str(work))
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list(hashes(work)) == ["block-0000.safetensors"]
    solved_layers.clear()
    quantize_blocks(merged, every(merged), Calibration(sequences, work), threads=1)
    assert len(solved_layers) == 4, "of the second block"
    assert hashes(work) == hashes(tmp_path / "whole")


def test_blocks_of_other_options_are_replaced(
    merged: Merged, make: Family, solved_layers: list[int], tmp_path: Path
) -> None:
    """One option differs at a time: each run finds the blocks of the first."""
    sequences = conversations(merged, 200, 90)
    first, work = tmp_path / "first", tmp_path / "work"
    quantize_blocks(merged, every(merged), Calibration(sequences, first), threads=1)
    base_alone = open_merged(make("llama")[0], None)
    for view, grid, calibration in (
        (merged, GRID, Calibration(sequences, work, damp=0.02)),
        (merged, GRID, Calibration(conversations(merged, 200, 90, seed=1), work)),
        (merged, GRID, Calibration([sequences[0][:150], sequences[0][150:], sequences[1]], work)),
        (merged, UniformGrid(4, -1, True), Calibration(sequences, work)),
        (base_alone, GRID, Calibration(sequences, work)),
    ):
        shutil.copytree(first, work)
        solved_layers.clear()
        quantize_blocks(view, every(merged, grid), calibration, threads=1)
        assert len(solved_layers) == 8
        assert not set(hashes(work).values()) & set(hashes(first).values())
        shutil.rmtree(work)


def test_broken_and_foreign_files_are_replaced(
    merged: Merged, solved_layers: list[int], tmp_path: Path
) -> None:
    """Half a file, another block's file, and files of other programs with other metadata."""
    calibration = Calibration(conversations(merged, 200, 90), tmp_path)
    quantize_blocks(merged, every(merged), calibration, threads=1)
    before, (first, second) = hashes(tmp_path), sorted(tmp_path.glob("block-*"))
    array = np.zeros(3, np.float32)
    foreign = [save({"a": array}, {"about": text}) for text in ("{}", "[]", "null", "{half")]
    for data in (second.read_bytes()[:-1], second.read_bytes()[:50], first.read_bytes(), b"",
                 bytes(range(256)), save({"a": array}), *foreign):  # fmt: skip
        second.write_bytes(data)
        solved_layers.clear()
        quantize_blocks(merged, every(merged), calibration, threads=1)
        assert len(solved_layers) == 4 and hashes(tmp_path) == before


def test_largest_damping_is_reported(
    merged: Merged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all layers, finished ones included."""
    needed = iter([0.01, 1.0, 0.01, 0.1, 0.01, 0.1, 0.01, 0.01])
    real = driver.solve

    def harder(*given: Any) -> Any:
        return dataclasses.replace(real(*given), damp=next(needed))

    monkeypatch.setattr(driver, "solve", harder)
    calibration = Calibration(conversations(merged, 200), tmp_path)
    for _ in range(2):
        assert quantize_blocks(merged, every(merged), calibration, threads=1).facts()["damp"] == 1.0


def test_experts_with_few_inputs_are_rounded(make: Family, tmp_path: Path) -> None:
    base, adapter, _ = make("mixtral")
    merged = open_merged(base, adapter)
    calibration = Calibration(conversations(merged, 70), tmp_path)
    weights = quantize_blocks(merged, every(merged), calibration, threads=1)
    assert weights.rounded and all(".experts." in name for name in weights.rounded)
    assert weights.facts()["rounded"] == len(weights.rounded) < len(linears(merged))
    name = weights.rounded[0]
    weight, kept = merged.tensor(name), GRID.values(weights.read(name))
    steps = np.repeat(np.abs(weights.read(name)["scales"].astype(np.float32)), 32, axis=1)
    inside = np.abs(kept - weight) <= 0.5 * steps * 1.01
    assert inside.mean() > 0.9, "to the nearest, apart from clipped values"
    again = quantize_blocks(merged, every(merged), calibration, threads=1)
    assert again.rounded == weights.rounded, "finished blocks report it as well"


def test_weight_that_is_not_finite_is_named(
    merged: Merged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = merged.tensor

    def broken(name: str) -> Any:
        values = real(name)
        if name == "model.layers.1.mlp.down_proj.weight":
            values[0, 0] = np.nan
        return values

    monkeypatch.setattr(merged, "tensor", broken)
    calibration = Calibration(conversations(merged, 200), tmp_path)
    with pytest.raises(ProofError, match=r"layers\.1\.mlp\.down_proj\.weight: .*not finite"):
        quantize_blocks(merged, every(merged), calibration, threads=1)
    assert len(hashes(tmp_path)) == 1
