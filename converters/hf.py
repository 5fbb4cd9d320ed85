"""Merged view -> a Hugging Face folder (safetensors), one block of rows in memory at a time.

    convert(merged, make_plan(merged, "f32", options), out, options, landing)    # out: an empty folder

The weights are the float32 sums, rounded once to the requested type.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft.converters.folder import tensor_blocks, write_config_and_tokenizer
from edgeft.converters.options import ConvertOptions
from edgeft.merge.landing import LandingProof
from edgeft.merge.view import Merged
from edgeft.weights.checkpoint import Spec, write_safetensors


@dataclass(frozen=True)
class Plan:
    """The type of all weights."""

    safetensors_dtype: str
    config_dtype: str
    """dtype in config.json"""


PLANS = {
    "f32": Plan("F32", "float32"),
    "f16": Plan("F16", "float16"),
    "bf16": Plan("BF16", "bfloat16"),
}


def make_plan(merged: Merged, quant: str, options: ConvertOptions) -> Plan:
    """The type of the weights; every model is accepted."""
    return PLANS[quant]


def convert(
    merged: Merged, plan: Plan, out: Path, options: ConvertOptions, landing: LandingProof
) -> dict[str, Any]:
    """Write the folder; return facts for the manifest."""
    specs = [Spec(name, plan.safetensors_dtype, shape) for name, shape in merged.shapes.items()]
    arrays = (
        tensor_blocks(merged, name, plan.safetensors_dtype, landing) for name in merged.shapes
    )
    write_safetensors(out / "model.safetensors", specs, arrays)
    write_config_and_tokenizer(merged, out, plan.config_dtype)
    return {"tensors": len(specs)}
