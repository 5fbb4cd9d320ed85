"""A builder's graph + the Merged view -> its weights in the file, each on its codes or in float32.

    writer = WeightWriter(merged, builder, file, recipe, quantized, landing)
    writer.write()
    writer.facts                            # {"matrices": 12, "coded": 10, "inexact": 0}

Each matrix is computed, rounded, written and released before the next one. A MatMul becomes a
MatMulNBits, a MoE a QMoE, the look-up of the embedding a GatherBlockQuantized. An embedding and an
output layer that share a weight share a place in the file.

This module imports onnx_ir: import it inside functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from edgeft.converters.onnx import matmul_nbits as nbits
from edgeft.converters.onnx.graph_editor import GraphEditor
from edgeft.converters.onnx.matrix_codes import MatrixQuantizer
from edgeft.converters.onnx.recipe import HEAD_NODE, Recipe
from edgeft.gptq.quantize import QuantizedWeights
from edgeft.merge.landing import LandingProof, sampled_rows
from edgeft.merge.view import Merged
from edgeft.progress import Progress
from edgeft.weights.checkpoint import Array, Rows
from edgeft.weights.gptq_layout import Codes

EMBEDDING = "model.embed_tokens.weight"
"""the builder's name of the constant"""
MAX_SOURCES_PROVED = 8
"""tensors in a matrix that the landing proof samples all of; of more (experts) only adapted ones"""
ACCURACY_LEVEL_INT8 = 4
"""of MatMulNBits: inputs are rounded to 8 bits"""


class WeightWriter:
    """Gives a graph its weights, node by node."""

    def __init__(
        self,
        merged: Merged,
        builder: Any,
        file: IO[bytes],
        recipe: Recipe,
        quantized: QuantizedWeights | None,
        landing: LandingProof,
    ) -> None:
        """`builder`: a `Decoder` after `make_model`. `file`: open for writing."""
        self._merged, self._recipe, self._landing = merged, recipe, landing
        self._lazy, self._layers = builder.lazy, builder.num_layers
        self._editor = GraphEditor(builder.graph, file)
        self._quantizer = MatrixQuantizer(merged, recipe, quantized)

    @property
    def facts(self) -> dict[str, int]:
        """For the manifest; see `MatrixQuantizer.facts`."""
        return self._quantizer.facts

    def write(self) -> None:
        products = [node for node in self._editor.nodes("MatMul")
                    if node.inputs[1].name in self._lazy]  # fmt: skip
        mixtures = self._editor.nodes("MoE")
        with Progress("writing, matrices", len(products) + len(mixtures)) as bar:
            for node in products:
                self._write_product(node)
                bar.update(1)
            for node in mixtures:
                if self._recipe.layer_bits:
                    self._write_experts(node)
                bar.update(1)
        for name in list(self._lazy):
            self._write_floats(name)
        self._editor.store_large()

    def _write_product(self, node: Any) -> None:
        if bits := self._recipe.bits_of(node.name, self._layers):
            self._write_codes(node, bits)
        elif node.name == HEAD_NODE and self._merged.tied:
            self._share_embedding(node)
        else:
            self._write_floats(node.inputs[1].name, transposed=True)

    def _write_codes(self, node: Any, bits: int) -> None:
        """MatMul -> MatMulNBits; after the output layer's codes come the embedding's."""
        name = node.inputs[1].name
        matrix = self._lazy.pop(name).T
        codes, block = self._quantize(matrix, bits)
        constants = self._store_codes(name.removesuffix(".weight"), codes, block)
        self._editor.replace(
            node, "MatMulNBits", [node.inputs[0], *constants],
            K=matrix.shape[1], N=matrix.shape[0], bits=nbits.stored_bits(codes.bits),
            block_size=block, accuracy_level=ACCURACY_LEVEL_INT8,
        )  # fmt: skip
        self._editor.remove(name)
        if node.name == HEAD_NODE:
            self._write_embedding(constants, codes.bits, block)

    def _write_embedding(self, head: list[Any], bits: int, block: int) -> None:
        """Gather -> GatherBlockQuantized, on the output layer's codes where both share a weight."""
        lookup = next(node for node in self._editor.nodes("Gather")
                      if node.inputs[0].name == EMBEDDING)  # fmt: skip
        matrix = self._lazy.pop(EMBEDDING)
        constants = head
        if not self._merged.tied:
            codes, block = self._quantize(matrix, self._recipe.head_bits)
            bits, constants = codes.bits, self._store_codes("model.embed_tokens", codes, block)
        blobs, *others = constants
        rows, blocks, size = blobs.const_value.shape
        flat = self._editor.reshaped("model.embed_tokens.rows", blobs, (rows, blocks * size))
        columns = matrix.shape[1]
        self._editor.replace(
            lookup, "GatherBlockQuantized", [flat, lookup.inputs[1], *others],
            bits=nbits.stored_bits(bits), block_size=block, gather_axis=0, quantize_axis=1,
            columns=columns if columns % block else None,
        )  # fmt: skip
        self._editor.remove(EMBEDDING)

    def _write_experts(self, node: Any) -> None:
        """MoE -> QMoE, whose two matrices have the same bits and blocks."""
        states, router, gate_up, _, down = node.inputs
        names = [gate_up.name, down.name]
        shapes, coded = [], []
        for name in names:
            matrix = self._lazy.pop(name)
            experts, rows, columns = matrix.shape
            # The rows of all experts are quantized as one matrix.
            coded.append(
                self._quantize(matrix.reshape(experts * rows, columns), self._recipe.layer_bits)
            )
            shapes.append((experts, rows, columns))
        bits = max(nbits.stored_bits(codes.bits) for codes, _ in coded)
        block = min(block for _, block in coded)
        inputs, zeros = [states, router], []
        for name, shape, (codes, _) in zip(names, shapes, coded, strict=True):
            base = name.removesuffix(".weight")
            arrays = nbits.pack_experts(codes, shape, block, bits)
            stored = {part: self._editor.store(f"{base}.{part}", a) for part, a in arrays.items()}
            inputs += [stored["codes"], stored["scales"], None]  # there is no bias
            zeros.append(stored.get("zeros"))
        if any(zero is not None for zero in zeros):
            inputs += [None, None, None, *zeros]  # a third matrix, which swiglu_fusion replaces
        else:
            inputs.pop()
        attributes = {name: entry.value for name, entry in node.attributes.items()}
        self._editor.replace(
            node, "QMoE", inputs, **attributes, expert_weight_bits=bits, block_size=block
        )
        for name in names:
            self._editor.remove(name)

    def _share_embedding(self, node: Any) -> None:
        """In float32: the output layer multiplies with the embedding, transposed."""
        name = node.inputs[1].name
        del self._lazy[name]
        embedding = self._editor.graph.initializers[EMBEDDING]
        self._editor.replace(node, "FusedMatMul", [node.inputs[0], embedding], transB=1)
        self._editor.remove(name)

    def _write_floats(self, name: str, transposed: bool = False) -> None:
        """In float32. `transposed`: the graph has (columns, rows) of the checkpoint's matrix."""
        matrix = self._lazy.pop(name)
        matrix = matrix.T if transposed else matrix
        values = matrix.evaluate(self._merged.tensor)
        by_rows = values.reshape(-1, values.shape[-1])
        self._prove(matrix, values, lambda rows: by_rows[rows])
        self._editor.store(name, values.T if transposed else values)

    def _quantize(self, matrix: Any, bits: int) -> tuple[Codes, int]:
        """Codes and block size of a lazy matrix; its rows are reported to the landing proof."""
        values = matrix.evaluate(self._merged.tensor)
        codes, block = self._quantizer.quantize(matrix, values, bits)
        width = values.shape[1]
        self._prove(matrix, values, lambda rows: codes.take(rows).values()[:, :width])
        return codes, block

    def _store_codes(self, base: str, codes: Codes, block: int) -> list[Any]:
        """Constants of codes, scales and, where they are needed, zeros."""
        named = zip(("codes", "scales", "zeros"), nbits.pack(codes, block), strict=True)
        return [self._editor.store(f"{base}.{part}", a) for part, a in named if a is not None]

    def _prove(self, matrix: Any, summed: Array, stored: Callable[[Rows], Array]) -> None:
        """Give the landing proof sampled rows of each of the checkpoint's tensors in a matrix.

        `summed`: the whole float32 matrix; `stored`: rows -> the values that the codes hold.
        """
        names = matrix.sources()

        def by_rows(read: Callable[[str], npt.NDArray[Any]]) -> npt.NDArray[Any]:
            values: npt.NDArray[Any] = matrix.evaluate(read)
            return values.reshape(-1, values.shape[-1])

        summed = summed.reshape(-1, summed.shape[-1])
        numbers = {name: number for number, name in enumerate(names)}
        if len(names) > 1:
            owners = by_rows(lambda name: self._all(name, np.int16(numbers[name])))[:, 0]
        else:
            owners = np.zeros(len(summed), np.int16)
        for name in names:
            if len(names) > MAX_SOURCES_PROVED and not self._merged.adapted(name):
                continue
            rows = np.flatnonzero(owners == numbers[name])
            rows = rows[sampled_rows(len(rows), summed.shape[1])]
            before, delta = self._merged.addends(name, slice(None))
            self._landing.add(
                name,
                by_rows(self._alone(name, before))[rows],
                None if delta is None else by_rows(self._alone(name, delta))[rows],
                summed[rows],
                stored(rows),
            )

    def _alone(self, name: str, values: Array) -> Callable[[str], npt.NDArray[Any]]:
        """Reads `values` for one tensor of the checkpoint, and zeros for every other."""
        return lambda source: values if source == name else self._all(source, np.float32(0))

    def _all(self, name: str, value: np.generic) -> npt.NDArray[Any]:
        """A tensor's shape, full of one value."""
        return np.broadcast_to(value, self._merged.shapes[name])
