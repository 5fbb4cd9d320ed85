"""The driver: what is kept of each block, and what a run does with what it finds."""

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
from edgeft.gptq.quantize import Calibration, linears, quantize
from edgeft.gptq.solver import Kind, Uniform
from edgeft.merge.view import Merged, open_merged

KIND = Uniform(4, 32, True)


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


def every(merged: Merged, kind: Kind = KIND) -> dict[str, Kind]:
    return dict.fromkeys(linears(merged), kind)


def hashes(work: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(work.glob("block-*"))
    }


def test_what_is_kept_and_found_again(
    merged: Merged, solved_layers: list[int], tmp_path: Path
) -> None:
    calibration = Calibration(conversations(merged, 200, 90, 150), tmp_path / "work")
    solved = quantize(merged, every(merged), calibration, threads=1)
    assert len(solved_layers) == 2 * 4, "q, k and v read the same, gate and up, too"
    for name in linears(merged):
        stored = solved.read(name)
        assert name in solved and stored["codes"].shape == merged.shapes[name]
        weight = merged.tensor(name)
        assert np.abs(KIND.values(stored) - weight).mean() < 0.2 * np.abs(weight).mean()
        some = solved.read(name, np.array([3, 1]))
        assert np.array_equal(some["codes"], stored["codes"][[3, 1]])
    assert "model.embed_tokens.weight" not in solved
    assert solved.facts() == {"quantized": 14, "rounded": 0, "damp": 0.01}
    before = hashes(tmp_path / "work")
    solved_layers.clear()
    again = quantize(merged, every(merged), calibration, threads=1)
    assert not solved_layers and hashes(tmp_path / "work") == before
    assert again.facts() == solved.facts()


@pytest.mark.parametrize("case", ["llama", "mixtral"])
def test_a_stopped_run_comes_to_the_same(
    make: Family, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter, _ = make(case)
    merged = open_merged(base, adapter)
    sequences = conversations(merged, 200, 90, 150)
    quantize(merged, every(merged), Calibration(sequences, tmp_path / "whole"), threads=1)
    parts = Calibration(sequences, tmp_path / "parts")
    with monkeypatch.context() as patch:
        patch.setattr(blocks.Block, "run", stop)
        with pytest.raises(KeyboardInterrupt):
            quantize(merged, every(merged), parts, threads=1)
    assert len(hashes(tmp_path / "parts")) == 1
    quantize(merged, every(merged), parts, threads=1)
    assert hashes(tmp_path / "parts") == hashes(tmp_path / "whole")
    monkeypatch.setattr(blocks, "HESSIANS", 1)
    one = Calibration(sequences, tmp_path / "one", offload=True)
    quantize(merged, every(merged), one, threads=1)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "whole"), "one Hessian at a time"


def stop(block: blocks.Block) -> None:
    raise KeyboardInterrupt


DIES = """
import os, signal, sys
import safetensors.numpy
from edgeft import gptq, merge, solver
def dies(tensors, path, about):
    if "block-0001" not in path.name:
        return real(tensors, path, about)
    path.write_bytes(b"half of it")
    os.kill(os.getpid(), signal.SIGKILL)
real, safetensors.numpy.save_file = safetensors.numpy.save_file, dies
merged = merge.open_merged(*map(gptq.Path, {folders!r}))
kinds = dict.fromkeys(gptq.linears(merged), solver.Uniform(4, 32, True))
gptq.quantize(merged, kinds, gptq.Calibration({sequences!r}, gptq.Path({work!r})), threads=1)
"""


def test_a_killed_run_comes_to_the_same(
    make: Family, merged: Merged, solved_layers: list[int], tmp_path: Path
) -> None:
    """In a process of its own, in the middle of writing the second block."""
    sequences = conversations(merged, 200, 90, 150)
    quantize(merged, every(merged), Calibration(sequences, tmp_path / "whole"), threads=1)
    work, folders = tmp_path / "killed", [str(folder) for folder in make("llama")[:2]]
    code = DIES.format(folders=folders, sequences=sequences, work=str(work))
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list(hashes(work)) == ["block-0000.safetensors"]
    solved_layers.clear()
    quantize(merged, every(merged), Calibration(sequences, work), threads=1)
    assert len(solved_layers) == 4, "of the second block"
    assert hashes(work) == hashes(tmp_path / "whole")


def test_blocks_of_anything_else_are_made_anew(
    merged: Merged, make: Family, solved_layers: list[int], tmp_path: Path
) -> None:
    """Of one thing at a time: each run finds the blocks of the first."""
    sequences = conversations(merged, 200, 90)
    first, work = tmp_path / "first", tmp_path / "work"
    quantize(merged, every(merged), Calibration(sequences, first), threads=1)
    base_alone = open_merged(make("llama")[0], None)
    for view, kind, calibration in (
        (merged, KIND, Calibration(sequences, work, damp=0.02)),
        (merged, KIND, Calibration(conversations(merged, 200, 90, seed=1), work)),
        (merged, KIND, Calibration([sequences[0][:150], sequences[0][150:], sequences[1]], work)),
        (merged, Uniform(4, -1, True), Calibration(sequences, work)),
        (base_alone, KIND, Calibration(sequences, work)),
    ):
        shutil.copytree(first, work)
        solved_layers.clear()
        quantize(view, every(merged, kind), calibration, threads=1)
        assert len(solved_layers) == 8
        assert not set(hashes(work).values()) & set(hashes(first).values())
        shutil.rmtree(work)


def test_what_is_no_such_block_is_made_anew(
    merged: Merged, solved_layers: list[int], tmp_path: Path
) -> None:
    """Half a file, another block's, and files that are not ours and say nothing or nonsense."""
    calibration = Calibration(conversations(merged, 200, 90), tmp_path)
    quantize(merged, every(merged), calibration, threads=1)
    before, (first, second) = hashes(tmp_path), sorted(tmp_path.glob("block-*"))
    array = np.zeros(3, np.float32)
    foreign = [save({"a": array}, {"about": text}) for text in ("{}", "[]", "null", "{half")]
    for data in (second.read_bytes()[:-1], second.read_bytes()[:50], first.read_bytes(), b"",
                 bytes(range(256)), save({"a": array}), *foreign):  # fmt: skip
        second.write_bytes(data)
        solved_layers.clear()
        quantize(merged, every(merged), calibration, threads=1)
        assert len(solved_layers) == 4 and hashes(tmp_path) == before


def test_the_most_damping_is_told(
    merged: Merged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all layers, and of those that are done already, too."""
    needed = iter([0.01, 1.0, 0.01, 0.1, 0.01, 0.1, 0.01, 0.01])
    real = driver.solve

    def harder(*given: Any) -> Any:
        return dataclasses.replace(real(*given), damp=next(needed))

    monkeypatch.setattr(driver, "solve", harder)
    calibration = Calibration(conversations(merged, 200), tmp_path)
    for _ in range(2):
        assert quantize(merged, every(merged), calibration, threads=1).facts()["damp"] == 1.0


def test_experts_that_saw_too_little_are_rounded(make: Family, tmp_path: Path) -> None:
    base, adapter, _ = make("mixtral")
    merged = open_merged(base, adapter)
    calibration = Calibration(conversations(merged, 70), tmp_path)
    solved = quantize(merged, every(merged), calibration, threads=1)
    assert solved.plain and all(".experts." in name for name in solved.plain)
    assert solved.facts()["rounded"] == len(solved.plain) < len(linears(merged))
    name = solved.plain[0]
    weight, kept = merged.tensor(name), KIND.values(solved.read(name))
    steps = np.repeat(np.abs(solved.read(name)["scales"].astype(np.float32)), 32, axis=1)
    inside = np.abs(kept - weight) <= 0.5 * steps * 1.01
    assert inside.mean() > 0.9, "to the nearest, apart from what was cut off"
    again = quantize(merged, every(merged), calibration, threads=1)
    assert again.plain == solved.plain, "it is known of blocks that are done, too"


def test_weights_that_are_no_numbers_are_named(
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
        quantize(merged, every(merged), calibration, threads=1)
    assert len(hashes(tmp_path)) == 1
