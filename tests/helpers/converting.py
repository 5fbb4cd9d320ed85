"""Converters for tests: plan and write in one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeft.converters.options import ConvertOptions
from edgeft.formats import format_named, load
from edgeft.merge.landing import LandingProof, Proof
from edgeft.merge.view import Merged
from edgeft.quantization.repack import BlockSource


class Converted:
    """An artifact that was written."""

    def __init__(self, facts: dict[str, Any], landing: LandingProof) -> None:
        self.facts = facts
        self._landing = landing

    def proof(self) -> Proof:
        """ProofError where the adapter did not land."""
        return self._landing.result()


def convert(
    merged: Merged,
    out: Path,
    quant: str,
    *,
    format: str = "gguf",
    block_source: BlockSource | None = None,
    **options: Any,
) -> Converted:
    """Write `out` as `edgeft merge-export` would; `options` are those of ConvertOptions."""
    row, settings = format_named(format), ConvertOptions(**{"threads": 2} | options)
    plan = load(row.plan)(merged, quant, settings)
    if block_source is not None:
        plan = plan.with_blocks(block_source)
    landing = LandingProof(merged)
    return Converted(load(row.converter)(merged, plan, out, settings, landing), landing)
