"""Adapter that was trained for a type (`--ship`) -> the proof that the file holds the weights it learned.

    target = ship_target(adapters)                      # None for any other adapter
    landing = ShipProof(merged, target)                 # a converter feeds it as any LandingProof
    landing.compare(Path("q4_0.gguf"), "gguf")          # {"equal": 211, "tensors": 211, "difference": 0.0}
    landing.result()

The adapter's manifest has the hash of each tensor's bytes after the last step. A file of that type, merged
into the base of the training, has the same bytes. Of any other file the difference is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeft.adapter.config import adapter_manifest
from edgeft.adapter.read import Weighted
from edgeft.merge.base_weights import BasePrecision
from edgeft.merge.landing import LandingProof, Proof
from edgeft.merge.view import Merged
from edgeft.quantization import ggml
from edgeft.weights import gguf_reader
from edgeft.weights.checkpoint import Array


@dataclass(frozen=True)
class ShipTarget:
    """What a training with --ship recorded."""

    quant: str
    """type of the file, such as q4_0"""
    base_precision: BasePrecision
    """values of the base that the training summed with"""
    tensors: dict[str, list[str]]
    """GGUF name -> [type, BLAKE2b of the bytes]"""


def ship_target(adapters: Sequence[Weighted]) -> ShipTarget | None:
    """None where the sum is not the one that a single training computed."""
    if len(adapters) != 1 or adapters[0].weight != 1:
        return None
    facts = adapter_manifest(adapters[0].path).get("facts", {}).get("ship")
    return facts and ShipTarget(facts["type"], facts["base_precision"], facts["tensors"])


class ShipProof(LandingProof):
    """A landing proof that also compares what is stored with what the training computed with."""

    def __init__(self, merged: Merged, target: ShipTarget) -> None:
        from gguf import GGMLQuantizationType

        super().__init__(merged)
        self._target = target
        self._types = {
            merged.card.hf_name(name): GGMLQuantizationType[qtype]
            for name, (qtype, _) in target.tensors.items()
        }
        self._error = self._size = 0.0
        self._equal = 0

    def add(
        self, name: str, before: Array, delta: Array | None, summed: Array, stored: Array
    ) -> None:
        super().add(name, before, delta, summed, stored)
        if name in self._types:
            qtype = self._types[name]
            learned = ggml.dequantize(ggml.quantize(summed, qtype, threads=1), qtype)
            self._error += float(np.square(stored - learned, dtype=np.float64).sum())
            self._size += float(np.square(learned, dtype=np.float64).sum())

    def check_stored(self, proof: Proof) -> None:
        """Equal bytes prove more than beta, which rounding hides where the change is small."""
        if self._equal < len(self._target.tensors):
            super().check_stored(proof)

    def compare(self, path: Path, format_name: str) -> dict[str, Any]:
        """Equal tensors of a GGUF file, and the rms difference of the sampled rows over their rms."""
        self._equal = _equal_tensors(path, self._target) if format_name == "gguf" else 0
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
        "precision, other tensor types, an importance matrix, or a CPU that sums in another order"
    )


def _equal_tensors(path: Path, target: ShipTarget) -> int:
    header = gguf_reader.read(path)
    equal = 0
    for name, (qtype, learned) in target.tensors.items():
        tensor = header.tensors.get(name)
        if tensor and tensor.type.name == qtype:
            equal += ggml.digest([gguf_reader.data(header, tensor)]) == learned
    return equal
