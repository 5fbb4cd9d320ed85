"""The Merged view + calibration ids -> quantized weights on disk, one file per transformer block.

    grids = {name: UniformGrid(4, 128, True) for name in linears(merged)}
    weights = quantize_blocks(merged, grids, Calibration(sequences, work), threads=2)
    weights.read("model.layers.0.mlp.up_proj.weight")["codes"]

Blocks are quantized in order. Each block reads the outputs of the quantized blocks before it.

A finished block is a file in the folder `work`. An interrupted run continues with the first block
that has no file, and gives the same result. A file records the hash of everything that it depends
on: the options, the inputs of the first block, and the weights of all blocks up to its own. A file
with another hash is replaced.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeft import __version__, files, models
from edgeft.errors import ProofError, require
from edgeft.gptq.blocks import HESSIAN_BYTES, ROW_TOKENS, Block, Blocks
from edgeft.gptq.hessians import InputGroup
from edgeft.gptq.linear_weights import stage_of
from edgeft.gptq.solver import DAMP, SHRINKAGE, Arrays, Grid, solve
from edgeft.merge.view import Merged
from edgeft.progress import Progress

MIN_INPUTS = 64
"""inputs; a matrix with fewer is rounded without a Hessian"""
TORCH_BYTES = 500_000_000
"""memory of torch itself"""


@dataclass(frozen=True)
class Calibration:
    """The text that GPTQ measures inputs on, and the folder of the finished blocks."""

    sequences: Sequence[Sequence[int]]
    """token ids"""
    work: Path
    """folder of the finished blocks; created by `quantize_blocks`, removed by the caller"""
    damp: float = DAMP
    """share of the mean diagonal that is added to a Hessian's diagonal"""
    offload: bool = False
    """keep activations in a file instead of memory"""

    def fingerprint(self) -> str:
        """sha256 of the sequences."""
        digest = hashlib.sha256()
        for ids in self.sequences:
            digest.update(np.asarray(ids, "<i4").tobytes() + b"\n")
        return digest.hexdigest()


class QuantizedWeights:
    """The quantized weights of a model, read from the files of its blocks."""

    def __init__(self) -> None:
        self.rounded: list[str] = []
        """weights with fewer than MIN_INPUTS inputs: experts that few tokens were sent to"""
        self.damp = 0.0
        """the largest damping that a Hessian needed to be inverted"""
        self._file: dict[str, Path] = {}

    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        return {"quantized": len(self._file), "rounded": len(self.rounded), "damp": self.damp}

    def add(self, path: Path) -> None:
        """Add the weights in a block's file."""
        from safetensors import safe_open

        about = _metadata(path)
        with safe_open(path, framework="np") as file:
            self._file |= {key.rpartition(":")[0]: path for key in file.keys()}  # noqa: SIM118
        self.rounded += about["rounded"]
        self.damp = max(self.damp, about["damp"])

    def __contains__(self, name: str) -> bool:
        return name in self._file

    def read(self, name: str, rows: Any = slice(None)) -> Arrays:
        """Rows of the arrays of one weight, by the array's name in its grid (`Grid.store`)."""
        from safetensors import safe_open

        with safe_open(self._file[name], framework="np") as file:
            keys = [key for key in file.keys() if key.rpartition(":")[0] == name]  # noqa: SIM118
            return {key.rpartition(":")[2]: file.get_tensor(key)[rows] for key in keys}


def linears(merged: Merged) -> list[str]:
    """Names of the weights that can be quantized: the linear layers of all blocks and experts.

    Routers, the embedding and the output layer are not among them.
    """
    return [
        name
        for name, shape in merged.shapes.items()
        if len(shape) == 2 and stage_of(merged.card, name) is not None
    ]


def check_computes(merged: Merged) -> None:
    """MissingExtra or FormatError where `quantize_blocks` could not compute the model."""
    for package in ("torch", "transformers", "accelerate"):
        require(package, "gptq")
    models.transformers_class(merged.config)


def footprint(merged: Merged, sequences: Sequence[Sequence[int]], offload: bool) -> tuple[int, int]:
    """Upper bounds (disk, memory) in bytes of `quantize_blocks`, for blocks of equal size."""
    shapes = [merged.shapes[name] for name in linears(merged)]
    weights, width = sum(map(math.prod, shapes)), max(columns for _, columns in shapes)
    layers = 1 + max(models.generalize(name)[1][0] for name in linears(merged))
    hessians = min(HESSIAN_BYTES, sum(4 * columns**2 for _, columns in shapes) // layers)
    hidden = merged.shapes[merged.card.hf_name("token_embd.weight") or ""][1]
    activations = 2 * 4 * hidden * sum(map(len, sequences))
    masks = sum(len(ids) * max(len(ids), ROW_TOKENS) for ids in sequences)
    disk = weights + weights // 8 + offload * activations
    memory = 2 * 4 * weights // layers + 12 * 4 * width**2 + hessians + masks
    memory += (not offload) * activations
    return disk, memory + TORCH_BYTES


def quantize_blocks(
    merged: Merged, grids: Mapping[str, Grid], calibration: Calibration, threads: int
) -> QuantizedWeights:
    """Quantize the weights of the checkpoint that `grids` names, each on its grid.

    ProofError where weights or inputs are not finite, FormatError for a family that transformers
    does not compute.
    """
    import torch

    work, weights = calibration.work, QuantizedWeights()
    work.mkdir(parents=True, exist_ok=True)
    offload = work if calibration.offload else None
    blocks = Blocks(merged, calibration.sequences, threads, offload)
    options = {
        "grids": {name: repr(grid) for name, grid in grids.items()}, "damp": calibration.damp,
        "calibration": calibration.fingerprint(), "config": merged.config, "threads": threads,
        "torch": torch.__version__, "edgeft": __version__, "shrinkage": SHRINKAGE,
        "min_inputs": MIN_INPUTS,
    }  # fmt: skip
    origin = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    origin.update(blocks.states.view(-1).numpy())
    with Progress("quantizing, blocks", len(blocks)) as bar, torch.inference_mode():
        for block in blocks:
            path = work / f"block-{block.number:04}.safetensors"
            origin.update(block.fingerprint().encode())
            if _metadata(path).get("origin") == origin.hexdigest():
                _restore(block, path, grids)
            else:
                arrays, about = _quantize(block, grids, calibration.damp)
                _save(path, arrays, about | {"origin": origin.hexdigest()})
            weights.add(path)
            bar.update(1)
    return weights


def _quantize(
    block: Block, grids: Mapping[str, Grid], damp: float
) -> tuple[Arrays, dict[str, Any]]:
    """Quantize a block's weights in place; their arrays, and the metadata of the block's file."""
    import torch

    arrays: Arrays = {}
    rounded: list[str] = []
    largest_damp = 0.0
    for stage in block.stages():
        for group in block.gather(stage):
            few = group.count < MIN_INPUTS
            # Without correlations between columns GPTQ is rounding to the nearest.
            hessian = torch.eye(len(group.hessian)) if few else group.hessian
            for grid, parts in _by_grid(group, grids).items():
                if few:
                    rounded += [name for name, _ in parts]
                # Weights that read the same inputs share the inversion of the Hessian.
                weight = torch.cat([rows for _, rows in parts])
                try:
                    result = solve(weight, hessian, grid, damp)
                except ProofError as error:
                    raise ProofError(f"{parts[0][0]}: {error.message}", error.hint) from None
                largest_damp = max(largest_damp, result.damp)
                start = 0
                for name, rows in parts:
                    span = slice(start, start + len(rows))
                    rows.copy_(result.values[span])
                    arrays |= {f"{name}:{key}": array[span] for key, array in result.arrays.items()}
                    start = span.stop
    return arrays, {"rounded": rounded, "damp": largest_damp}


def _by_grid(group: InputGroup, grids: Mapping[str, Grid]) -> dict[Grid, list[tuple[str, Any]]]:
    """Grid -> the weights of a group (name, rows) that are quantized on it."""
    parts: dict[Grid, list[tuple[str, Any]]] = {}
    for linear in group.linears:
        for name, rows in linear.parts():
            if name in grids:
                parts.setdefault(grids[name], []).append((name, rows))
    return parts


def _restore(block: Block, path: Path, grids: Mapping[str, Grid]) -> None:
    """Give a block the quantized weights in its file."""
    import torch

    weights = QuantizedWeights()
    weights.add(path)
    for linear in block.linears:
        for name, rows in linear.parts():
            if name in grids:
                rows.copy_(torch.from_numpy(grids[name].values(weights.read(name))))


def _metadata(path: Path) -> dict[str, Any]:
    """{"origin", "rounded", "damp"} of a block's file; {} for a file that is absent or broken."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            about = json.loads(file.metadata()["about"])
            return about if isinstance(about, dict) else {}
    except (OSError, SafetensorError, TypeError, KeyError, ValueError):
        return {}


def _save(path: Path, arrays: Arrays, about: dict[str, Any]) -> None:
    from safetensors.numpy import save as file_bytes

    contiguous = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
    with files.whole_file(path) as temp:
        temp.write_bytes(file_bytes(contiguous, {"about": json.dumps(about)}))
