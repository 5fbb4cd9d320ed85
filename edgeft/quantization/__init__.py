"""Rows of weights <-> the bytes of a type: ggml's blocks, NF4 and FP4, GPTQ codes in ggml's blocks."""

from edgeft.quantization.ggml import quantize
from edgeft.quantization.ggml_blocks import BlockGrid
from edgeft.quantization.nf4 import Quantized, quantized, round_trip
from edgeft.quantization.repack import BlockSource, RepackedGPTQ

__all__ = [
    "BlockGrid",
    "BlockSource",
    "Quantized",
    "RepackedGPTQ",
    "quantize",
    "quantized",
    "round_trip",
]
