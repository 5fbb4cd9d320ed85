"""GPTQ of a merged model: block after block, each on what the quantized ones before it make.

    kinds = {name: Uniform(4, 128, True) for name in linears(merged)}
    solved = quantize(merged, kinds, Calibration(sequences, work), threads=2)
    solved.read("model.layers.0.mlp.up_proj.weight")["codes"]

Every block that is done lies in a file of `work`: a run that was stopped goes on with the block
where it stopped, and comes to the same result. Blocks that are done are only computed again. A
file names what it was made of, by a hash that runs over the options, the first block's inputs and
the weights of all blocks up to its own; one of anything else is made anew.
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
from edgeft.gptq.blocks import HESSIANS, WIDTH, Block, Blocks, Group, stage_of
from edgeft.gptq.solver import DAMP, SHRINK, Arrays, Kind, solve
from edgeft.merge.view import Merged
from edgeft.progress import Progress

LEAST = 64
"""inputs below which a matrix is rounded as if all inputs were alike"""


@dataclass(frozen=True)
class Calibration:
    """What the quantizer learns from, and where it keeps what is done."""

    sequences: Sequence[Sequence[int]]
    """token ids"""
    work: Path
    """folder for the blocks that are done; made here, removed by the caller"""
    damp: float = DAMP
    offload: bool = False
    """activations in a file instead of memory"""

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for ids in self.sequences:
            digest.update(np.asarray(ids, "<i4").tobytes() + b"\n")
        return digest.hexdigest()


class Solved:
    """What came of it, read tensor by tensor from the files of the blocks."""

    def __init__(self) -> None:
        self.plain: list[str] = []
        """weights that saw too few inputs: of experts that hardly any token was sent to"""
        self.damp = 0.0
        """the most that a Hessian needed to be inverted"""
        self._file: dict[str, Path] = {}

    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        return {"quantized": len(self._file), "rounded": len(self.plain), "damp": self.damp}

    def add(self, path: Path) -> None:
        """A block's file."""
        from safetensors import safe_open

        about = _about(path)
        with safe_open(path, framework="np") as file:
            self._file |= {key.rpartition(":")[0]: path for key in file.keys()}  # noqa: SIM118
        self.plain += about["plain"]
        self.damp = max(self.damp, about["damp"])

    def __contains__(self, name: str) -> bool:
        return name in self._file

    def read(self, name: str, rows: Any = slice(None)) -> Arrays:
        """Rows of the arrays that store a weight of the checkpoint, by what its kind calls them."""
        from safetensors import safe_open

        with safe_open(self._file[name], framework="np") as file:
            keys = [key for key in file.keys() if key.rpartition(":")[0] == name]  # noqa: SIM118
            return {key.rpartition(":")[2]: file.get_tensor(key)[rows] for key in keys}


def linears(merged: Merged) -> list[str]:
    """The weights of the checkpoint that can be quantized: every linear layer of every block, those
    of each expert, too, but no router, embedding or output layer."""
    return [
        name
        for name, shape in merged.shapes.items()
        if len(shape) == 2 and stage_of(merged.card, name) is not None
    ]


def check_computes(merged: Merged) -> None:
    """MissingExtra or FormatError where `quantize` could not compute the model."""
    for package in ("torch", "transformers", "accelerate"):
        require(package, "gptq")
    models.transformers_class(merged.config)


def footprint(merged: Merged, sequences: Sequence[Sequence[int]], offload: bool) -> tuple[int, int]:
    """(disk, memory) in bytes that `quantize` takes at most, for blocks of the same size."""
    shapes = [merged.shapes[name] for name in linears(merged)]
    weights, width = sum(map(math.prod, shapes)), max(columns for _, columns in shapes)
    layers = 1 + max(models.generalize(name)[1][0] for name in linears(merged))
    hessians = min(HESSIANS, sum(4 * columns**2 for _, columns in shapes) // layers)
    hidden = merged.shapes[merged.card.hf_name("token_embd.weight") or ""][1]
    activations = 2 * 4 * hidden * sum(map(len, sequences))
    masks = sum(len(ids) * max(len(ids), WIDTH) for ids in sequences)
    disk = weights + weights // 8 + offload * activations
    memory = 2 * 4 * weights // layers + 12 * 4 * width**2 + hessians + masks
    memory += (not offload) * activations
    return disk, memory + 500_000_000  # torch's own


def quantize(
    merged: Merged, kinds: Mapping[str, Kind], calibration: Calibration, threads: int
) -> Solved:
    """Quantize the weights of the checkpoint that `kinds` names.

    ProofError where the model computes what are no numbers, FormatError for a family that
    transformers does not compute.
    """
    import torch

    work, solved = calibration.work, Solved()
    work.mkdir(parents=True, exist_ok=True)
    offload = work if calibration.offload else None
    blocks = Blocks(merged, calibration.sequences, threads, offload)
    options = {
        "kinds": {name: repr(kind) for name, kind in kinds.items()}, "damp": calibration.damp,
        "calibration": calibration.fingerprint(), "config": merged.config, "threads": threads,
        "torch": torch.__version__, "edgeft": __version__, "shrink": SHRINK, "least": LEAST,
    }  # fmt: skip
    origin = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    origin.update(blocks.states.view(-1).numpy())
    with Progress("quantizing, blocks", len(blocks)) as bar, torch.inference_mode():
        for block in blocks:
            path = work / f"block-{block.number:04}.safetensors"
            origin.update(block.fingerprint().encode())
            if _about(path).get("origin") == origin.hexdigest():
                _restore(block, path, kinds)
            else:
                stored, about = _solve(block, kinds, calibration.damp)
                _save(path, stored, about | {"origin": origin.hexdigest()})
            solved.add(path)
            bar.update(1)
    return solved


def _solve(block: Block, kinds: Mapping[str, Kind], damp: float) -> tuple[Arrays, dict[str, Any]]:
    """Quantize a block in place; what is to be kept of it, and about it."""
    import torch

    stored: Arrays = {}
    plain: list[str] = []
    most = 0.0
    for stage_ in block.stages():
        for group in block.gather(stage_):
            hessian = group.hessian if group.seen >= LEAST else torch.eye(len(group.hessian))
            for kind, parts in _by_kind(group, kinds).items():
                if group.seen < LEAST:
                    plain += [name for name, _ in parts]
                weight = torch.cat([rows for _, rows in parts])
                try:
                    found = solve(weight, hessian, kind, damp)
                except ProofError as error:
                    raise ProofError(f"{parts[0][0]}: {error.message}", error.hint) from None
                most = max(most, found.damp)
                start = 0
                for name, rows in parts:
                    own = slice(start, start + len(rows))
                    rows.copy_(found.values[own])
                    stored |= {f"{name}:{key}": array[own] for key, array in found.stored.items()}
                    start = own.stop
    return stored, {"plain": plain, "damp": most}


def _by_kind(group: Group, kinds: Mapping[str, Kind]) -> dict[Kind, list[tuple[str, Any]]]:
    """The weights that read the same inputs, by the kind of grid that each is to have."""
    found: dict[Kind, list[tuple[str, Any]]] = {}
    for product in group.products:
        for name, rows in product.parts():
            if name in kinds:
                found.setdefault(kinds[name], []).append((name, rows))
    return found


def _restore(block: Block, path: Path, kinds: Mapping[str, Kind]) -> None:
    """Give a block the weights that it was quantized to."""
    import torch

    solved = Solved()
    solved.add(path)
    for product in block.products:
        for name, rows in product.parts():
            if name in kinds:
                rows.copy_(torch.from_numpy(kinds[name].values(solved.read(name))))


def _about(path: Path) -> dict[str, Any]:
    """What a block's file says about itself, {} where there is no whole one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            found = json.loads(file.metadata()["about"])
            return found if isinstance(found, dict) else {}
    except (OSError, SafetensorError, TypeError, KeyError, ValueError):
        return {}


def _save(path: Path, stored: Arrays, about: dict[str, Any]) -> None:
    from safetensors.numpy import save_file

    whole = {key: np.ascontiguousarray(array) for key, array in stored.items()}
    with files.whole_file(path) as temp:
        save_file(whole, temp, {"about": json.dumps(about)})
