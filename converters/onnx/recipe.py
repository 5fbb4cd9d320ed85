"""Name of a quantization -> bits and block size of every matrix in the graph.

recipe = recipe_of("int4", block=32)
recipe.bits_of("/model/layers.0/mlp/down_proj/MatMul", layers=30)       # 8
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgeft.formats import GPTQ_PREFIX
from edgeft.gptq.solver import UniformGrid
from edgeft.quantization.rounding import CodesRounding

BITS = {"f32": (0, 0, 0), "int8": (8, 8, 8), "int4-mixed": (4, 8, 8), "int4": (4, 8, 4)}
"""quantization -> bits of layers, of embedding and head, of the layers' most sensitive products"""
HEAD_NODE = "/lm_head/MatMul"
ROUTER = "/router/"
"""in the names of router products; they stay in float32: they are small, and their errors choose
other experts"""
SENSITIVE = re.compile(r"/(qkv_proj|v_proj|down_proj)/")
"""names of the products that lose most by rounding"""


@dataclass(frozen=True)
class Recipe:
    """Bits of each matrix's codes; 0 keeps it in float32."""

    layer_bits: int
    head_bits: int
    """of embedding and output layer"""
    sensitive_bits: int
    """of the most sensitive products, in the layers that matter most"""
    block: int
    """columns that share a scale"""

    @property
    def grid(self) -> UniformGrid:
        """The grid that GPTQ quantizes the layers on."""
        return UniformGrid(self.layer_bits, self.block, symmetric=True)

    def nearest(self, bits: int) -> CodesRounding:
        """How matrices are rounded that GPTQ does not quantize."""
        return CodesRounding(bits, self.block, "f32")

    def bits_of(self, node: str, layers: int) -> int:
        """Of a product, by the node's name in a model of so many layers."""
        if node == HEAD_NODE:
            return self.head_bits
        if ROUTER in node:
            return 0
        number = re.search(r"/layers\.(\d+)/", node)
        matters = number is not None and _matters(int(number[1]), layers)
        return self.sensitive_bits if matters and SENSITIVE.search(node) else self.layer_bits


def recipe_of(quant: str, block: int) -> Recipe:
    """`block`: columns that share a scale."""
    layers, head, sensitive = BITS[quant.removeprefix(GPTQ_PREFIX)]
    return Recipe(layers, head, sensitive, block)


def _matters(layer: int, layers: int) -> bool:
    """Whether llama.cpp gives the sensitive matrices of a layer more bits.

    https://github.com/ggml-org/llama.cpp/blob/36667c8edcded08063ed51c7d57e9e086bbfc903/src/llama-quant.cpp#L136
    """
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
