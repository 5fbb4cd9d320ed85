"""The Merged view + calibration text -> GPTQ codes or ggml blocks, one transformer block at a time."""

from edgeft.gptq.blocks import Blocks
from edgeft.gptq.quantize import (
    Calibration,
    QuantizedWeights,
    check_computes,
    footprint,
    linears,
    quantize_blocks,
)
from edgeft.gptq.solver import GgmlGrid, Grid, QuantizedMatrix, UniformGrid, solve

__all__ = [
    "Blocks",
    "Calibration",
    "GgmlGrid",
    "Grid",
    "QuantizedMatrix",
    "QuantizedWeights",
    "UniformGrid",
    "check_computes",
    "footprint",
    "linears",
    "quantize_blocks",
    "solve",
]
