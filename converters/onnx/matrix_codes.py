"""A lazy matrix -> its codes: those of GPTQ where blocks can hold them, the nearest ones elsewhere.

quantizer = MatrixQuantizer(merged, recipe, quantized)
codes, block = quantizer.quantize(matrix, values, bits=4)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgeft.converters.onnx import matmul_nbits as nbits
from edgeft.converters.onnx.recipe import Recipe
from edgeft.errors import ProofError
from edgeft.gptq.quantize import QuantizedWeights
from edgeft.merge.view import Merged
from edgeft.weights.checkpoint import Array
from edgeft.weights.gptq_layout import Codes

if TYPE_CHECKING:
    from edgeft.converters.onnx.lazy_tensor import LazyTorchTensor


class MatrixQuantizer:
    """Quantizes the matrices of a graph, and counts how."""

    def __init__(
        self, merged: Merged, recipe: Recipe, quantized: QuantizedWeights | None = None
    ) -> None:
        """`quantized`: weights that GPTQ quantized on `recipe.grid`."""
        self._merged, self._recipe, self._quantized = merged, recipe, quantized
        self.facts = {"matrices": 0, "coded": 0, "inexact": 0}
        """quantized matrices; those with GPTQ's codes; those whose GPTQ codes no block holds"""

    def quantize(self, matrix: LazyTorchTensor, values: Array, bits: int) -> tuple[Codes, int]:
        """Codes and block size of a matrix with these values, (rows, columns).

        `bits` are of codes that are rounded here; GPTQ's keep their own. ProofError where a value is not finite.
        """
        import torch

        self.facts["matrices"] += 1
        names = matrix.sources()
        parts = {name: codes for name in names if (codes := self._gptq_codes(name))}
        if len(parts) == len(names):
            codes = joined(matrix, parts)
            if codes and (block := nbits.largest_block(codes.groups)):
                self.facts["coded"] += 1
                return codes, block
            self.facts["inexact"] += 1
        try:
            codes = self._recipe.nearest(bits).store(values, torch.get_num_threads())
        except ValueError as error:
            raise ProofError(f"{names[0]}: {error}") from None
        return codes, self._recipe.block

    def _gptq_codes(self, name: str) -> Codes | None:
        """Of a tensor of the checkpoint; None where GPTQ did not quantize it."""
        if self._quantized and name in self._quantized:
            return self._recipe.grid.coded(self._quantized.read(name))
        return self._merged.codes(name)


def joined(matrix: LazyTorchTensor, parts: dict[str, Codes]) -> Codes | None:
    """The codes of a matrix from those of its sources; None where bits or groups differ."""
    first = next(iter(parts.values()))
    if any(part.bits != first.bits or not np.array_equal(part.groups, first.groups)
           for part in parts.values()):  # fmt: skip
        return None

    def arranged(array: Callable[[Codes], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        return matrix.evaluate(lambda name: array(parts[name]))

    # The matrix's operations work on columns: scales and zeros are spread over them and back.
    _, starts, groups = np.unique(first.groups, return_index=True, return_inverse=True)
    scales = arranged(lambda part: part.scales.take(part.groups, axis=1))[:, starts]
    zeros = arranged(lambda part: part.zeros.take(part.groups, axis=1))[:, starts]
    codes = arranged(lambda part: part.codes)
    return Codes(codes, scales, zeros, groups.astype(np.int32), first.bits)
