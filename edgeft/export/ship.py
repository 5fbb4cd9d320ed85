"""Adapter that was trained for a type (`--ship`) -> the proof that the file holds the weights it learned.

    target = ship_target(adapters)                      # None for any other adapter
    landing = ShipProof(merged, target)                 # a converter feeds it as any LandingProof
    landing.compare(Path("q4_0.gguf"), FORMATS["gguf"])          # {"equal": 211, "tensors": 211, "difference": 0.0}
    landing.result()

The adapter's manifest has the hash of each tensor after the last step. A file of that type, merged into the
base of the training, has the same. Of any other file the difference is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeft.adapter.config import adapter_manifest
from edgeft.adapter.folder import adapter_home
from edgeft.adapter.read import Weighted
from edgeft.export.options import ExportOptions
from edgeft.formats import Format, load, nearest_format
from edgeft.merge.base_weights import BasePrecision
from edgeft.merge.landing import LandingProof, Proof
from edgeft.merge.view import Merged
from edgeft.quantization.rounding import rounding_named
from edgeft.weights.checkpoint import Array


@dataclass(frozen=True)
class ShipTarget:
    """What a training with --ship recorded."""

    quant: str
    """type of the file, such as q4_0"""
    base_precision: BasePrecision
    """values of the base that the training summed with"""
    tensors: dict[str, list[str]]
    """name of a tensor in the file -> [type, BLAKE2b of what is stored]"""
    from_file: bool = False
    """whether it began with a file (--ship-from): then the merged view has the values of its last step"""

    @property
    def format(self) -> Format | None:
        """None for a type that this version no longer has."""
        return nearest_format(self.quant)


def ship_target(adapters: Sequence[Weighted]) -> ShipTarget | None:
    """None where the sum is not the one that a single training computed."""
    if len(adapters) != 1 or adapters[0].weight != 1:
        return None
    facts = adapter_manifest(adapter_home(adapters[0].path)).get("facts", {}).get("ship")
    return facts and ShipTarget(
        facts["type"], facts["base_precision"], facts["tensors"], "file" in facts
    )


def rounds_as_trained(options: ExportOptions, fmt: Format, quant: str) -> bool:
    """Whether a type that GPTQ makes is rounded to the nearest, since the adapter was trained for that.

    --calibration, --calibration-text, --group-size and --asymmetric ask for other weights, which GPTQ calibrates.
    """
    target = ship_target(options.adapter) if quant in fmt.solved else None
    calibrated = options.calibration or options.calibration_text
    asked = calibrated or options.group_size or not options.symmetric
    return bool(target and target.quant == quant and quant in fmt.nearest and not asked)


class ShipProof(LandingProof):
    """A landing proof that also compares what is stored with what the training computed with."""

    def __init__(self, merged: Merged, target: ShipTarget) -> None:
        super().__init__(merged)
        self._merged, self._target = merged, target
        self._roundings = {
            merged.card.hf_name(name) or name: rounding_named(kind)
            for name, (kind, _) in target.tensors.items()
        }
        self._error = self._size = 0.0
        self._equal = 0

    def add(
        self, name: str, before: Array, delta: Array | None, summed: Array, stored: Array
    ) -> None:
        super().add(name, before, delta, summed, stored)
        if name in self._roundings:
            learned = self._learned(name, summed)
            self._error += float(np.square(stored - learned, dtype=np.float64).sum())
            self._size += float(np.square(learned, dtype=np.float64).sum())

    def _learned(self, name: str, summed: Array) -> Array:
        """What the training computed with, of rows that are summed."""
        if self._target.from_file:
            return summed
        rounding, rows = self._roundings[name], summed.reshape(-1, summed.shape[-1])
        return rounding.values(rounding.store(rows), rows.shape[1]).reshape(summed.shape)

    def check_stored(self, proof: Proof) -> None:
        """Equal bytes prove more than beta, which rounding hides where the change is small."""
        if self._equal < len(self._target.tensors):
            super().check_stored(proof)

    def compare(self, path: Path, fmt: Format) -> dict[str, Any]:
        """Equal tensors of a file, and the rms difference of the sampled rows over their rms."""
        learned = self._target.tensors
        if fmt == self._target.format:
            stored = load(fmt.digests)(path, self._merged, learned)
            self._equal = sum([*stored.get(name, ())] == learned[name] for name in learned)
        return {
            "type": self._target.quant,
            "equal": self._equal,
            "tensors": len(self._target.tensors),
            "difference": (self._error / self._size) ** 0.5 if self._size else 0.0,
        }


def describe(facts: dict[str, Any], quant: str) -> str:
    """A line about `ShipProof.compare`; a warning where the artifact is not what was trained."""
    if facts["equal"] == facts["tensors"]:
        return f"the weights of the training's last step, bit for bit: {facts['equal']} tensors"
    differs = f"differ from the training's by {facts['difference']:.2%}"
    if quant != facts["type"]:
        return f"trained for {facts['type']}: the weights of {quant} {differs}"
    return (
        f"{facts['tensors'] - facts['equal']} of {facts['tensors']} tensors {differs}: another base "
        "precision, other tensor types or groups, calibration, or a CPU that sums in another order"
    )
