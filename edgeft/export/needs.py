"""Weights of a model + quantizations -> size, memory and time of their export, before it starts.

for need in export_needs(134_515_008, ["q4_k_m"]):
    print(need.quant, need.size, need.memory, need.seconds)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeft.errors import InputError, did_you_mean
from edgeft.export.pipeline import EXPORT_MEMORY_BYTES
from edgeft.export.plan import UNQUANTIZED_BITS

BITS = {
    "q8_0": 8.5,
    "q6_k": 6.6,
    "q5_k_m": 5.7,
    "q5_0": 5.5,
    "q4_k_m": 4.9,
    "q4_1": 5.0,
    "q4_0": 4.5,
}
"""quantization -> bits per weight of a large model, with the types that the layers get"""
MEGABYTES_PER_SECOND = {
    "q8_0": 880,
    "q6_k": 114,
    "q5_0": 1280,
    "q4_0": 1950,
    "q4_k_m": 49,
    "q5_k_m": 49,
}
"""float32 input that one core quantizes in a second, measured on an AMD EPYC (Zen 3)"""
WRITTEN_MEGABYTES_PER_SECOND = 400
"""of an unquantized type, or of another one"""


@dataclass(frozen=True)
class ExportNeed:
    quant: str
    size: int
    """bytes of the artifact, which is the disk that it takes"""
    memory: int
    """bytes beside pages of the base's files"""
    seconds: float
    """estimate, without the checks against the live model"""


def export_needs(weights: int, quants: Sequence[str], cores: int = 1) -> list[ExportNeed]:
    """One row for each quantization. InputError for one whose size is not known here."""
    known = BITS | UNQUANTIZED_BITS
    rows = []
    for quant in quants:
        if quant not in known:
            raise InputError(f"plan knows no size of {quant!r}", did_you_mean(quant, known))
        bits = known[quant]
        speed = MEGABYTES_PER_SECOND.get(quant, WRITTEN_MEGABYTES_PER_SECOND) * 1e6 * cores
        size = int(weights * bits / 8)
        rows.append(ExportNeed(quant, size, EXPORT_MEMORY_BYTES, round(4 * weights / speed, 1)))
    return rows
