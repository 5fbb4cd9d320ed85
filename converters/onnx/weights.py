"""A builder's graph gets its weights: each matrix is computed, rounded, written and let go.

    weights = Weights(merged, builder, file, rule, solved, landing)
    weights.write()

A MatMul becomes a MatMulNBits, on codes that GPTQ chose where there are such, or keeps its matrix in
float32. Embedding and output layer that are one weight have one place in the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from edgeft.converters.onnx import matmul_nbits as nbits
from edgeft.converters.onnx.deferred import evaluate, leaves
from edgeft.gptq.quantize import Solved
from edgeft.gptq.solver import Uniform
from edgeft.merge.landing import LandingProof, sampled_rows
from edgeft.merge.view import Merged
from edgeft.progress import Progress
from edgeft.weights import gptq_layout
from edgeft.weights.checkpoint import Array, Rows

DATA = "model.onnx.data"
ALIGN = 64
"""bytes, as ONNX Runtime maps them"""
INLINE = 1024
"""bytes of a constant that stays in the graph"""
HEAD = "/lm_head/MatMul"
EMBEDDING = "model.embed_tokens.weight"
SENSITIVE = re.compile(r"/(qkv_proj|v_proj|down_proj)/")
"""products that lose most by rounding"""
FEW = 8
"""tensors in a matrix of which all are looked at; of more, as experts are, only adapted ones"""
PARTS = ("codes", "scales", "zeros")
"""of a matrix in a MatMulNBits"""
INT8 = 4
"""accuracy_level of MatMulNBits: inputs are rounded to 8 bits"""


@dataclass(frozen=True)
class Recipe:
    """Bits of each matrix's codes; 0: it stays in float32."""

    layers: int
    head: int
    """of embedding and output layer"""
    sensitive: int
    """of the most sensitive products of the layers that matter most"""
    block: int
    """columns that share a scale"""

    @property
    def kind(self) -> Uniform:
        """What GPTQ solves the layers for."""
        return Uniform(self.layers, self.block, symmetric=True)


class Weights:
    """See the module's docstring."""

    def __init__(
        self,
        merged: Merged,
        builder: Any,
        file: IO[bytes],
        rule: Recipe,
        solved: Solved | None,
        landing: LandingProof,
    ) -> None:
        self._merged, self._rule, self._solved = merged, rule, solved
        self._landing = landing
        self._graph, self._deferred, self._file = builder.graph, builder.deferred, file
        self._count = builder.num_layers
        self.facts = {"matrices": 0, "coded": 0, "inexact": 0}
        """matrices on a grid, how many of them with codes that were given, and how many whose codes
        had no place and were rounded anew"""

    def write(self) -> None:
        products = [node for node in self._graph if node.op_type == "MatMul"
                    and node.inputs[1].name in self._deferred]  # fmt: skip
        mixtures = [node for node in self._graph if node.op_type == "MoE"]
        with Progress("writing, matrices", len(products) + len(mixtures)) as bar:
            for node in products:
                self._product(node)
                bar.update(1)
            for node in mixtures:
                if self._rule.layers:
                    self._experts(node)
                bar.update(1)
        for name in list(self._deferred):
            self._plain(name)
        for name, value in list(self._graph.initializers.items()):
            tensor = value.const_value
            if not hasattr(tensor, "location") and tensor.nbytes > INLINE:
                self._keep(name, tensor.numpy())

    def _product(self, node: Any) -> None:
        name, bits = node.inputs[1].name, self._bits(node.name)
        if bits:
            self._on_codes(node, name, bits)
        elif node.name == HEAD and self._merged.tied:
            # The embedding is read as it lies there.
            del self._deferred[name]
            embedding = self._graph.initializers[EMBEDDING]
            self._become(node, "FusedMatMul", [node.inputs[0], embedding], transB=1)
            self._graph.initializers.pop(name)
        else:
            self._plain(name, transposed=True)

    def _bits(self, node: str) -> int:
        if node == HEAD:
            return self._rule.head
        if "/router/" in node:  # small, and what it gets wrong costs whole experts
            return 0
        number = re.search(r"/layers\.(\d+)/", node)
        matters = number is not None and _matters(int(number[1]), self._count)
        return self._rule.sensitive if matters and SENSITIVE.search(node) else self._rule.layers

    def _on_codes(self, node: Any, name: str, bits: int) -> None:
        matrix = self._deferred.pop(name).T
        codes, block = self._coded(matrix, bits)
        base = name.removesuffix(".weight")
        stored = self._store(base, codes, block)
        self._become(
            node, "MatMulNBits", [node.inputs[0], *stored], K=matrix.shape[1], N=matrix.shape[0],
            bits=nbits.width(codes.bits), block_size=block, accuracy_level=INT8,
        )  # fmt: skip
        self._graph.initializers.pop(name)
        if node.name == HEAD:
            self._look_up(stored, codes.bits, block)

    def _experts(self, node: Any) -> None:
        """A MoE becomes a QMoE. The rows of all experts are one matrix."""
        states, router, gate_up, _, down = node.inputs
        shapes, coded, blocks = [], [], []
        for weight in (gate_up, down):
            matrix = self._deferred.pop(weight.name)
            count, rows, columns = matrix.shape
            codes, block = self._coded(matrix.reshape(count * rows, columns), self._rule.layers)
            shapes.append((count, rows, columns))
            coded.append(codes)
            blocks.append(block)
        bits, block = max(nbits.width(codes.bits) for codes in coded), min(blocks)
        parts: list[dict[str, Any]] = []
        for weight, shape, codes in zip((gate_up, down), shapes, coded, strict=True):
            base = weight.name.removesuffix(".weight")
            arrays = nbits.arrays(nbits.cut(codes, shape[2], block, bits), block)
            shaped = {name: array.reshape(*shape[:2], -1)
                      for name, array in zip(PARTS, arrays, strict=True)
                      if array is not None}  # fmt: skip
            # Other than a MatMulNBits it wants the last block without what fills it up.
            shaped["codes"] = shaped["codes"][..., : -(-shape[2] * bits // 8)]
            parts.append({name: self._keep(f"{base}.{name}", array)
                          for name, array in shaped.items()})  # fmt: skip
        inputs = [states, router]
        for part in parts:
            inputs += [part["codes"], part["scales"], None]
        zeros = [part.get("zeros") for part in parts]
        if any(zero is not None for zero in zeros):
            inputs += [None, None, None, *zeros]
        else:
            inputs.pop()
        kept = {name: entry.value for name, entry in node.attributes.items()}
        self._become(node, "QMoE", inputs, **kept, expert_weight_bits=bits, block_size=block)
        for weight in (gate_up, down):
            self._graph.initializers.pop(weight.name)

    def _look_up(self, head: list[Any], bits: int, block: int) -> None:
        """The embedding: of the output layer's codes, if it is the same weight, else of its own."""
        lookup = next(node for node in self._graph if node.op_type == "Gather"
                      and node.inputs[0].name == EMBEDDING)  # fmt: skip
        matrix = self._deferred.pop(EMBEDDING)
        if not self._merged.tied:
            codes, block = self._coded(matrix, self._rule.head)
            bits, head = codes.bits, self._store("model.embed_tokens", codes, block)
        codes_of, *others = head
        tensor = codes_of.const_value
        rows, blocks, size = tensor.shape
        flat = self._give("model.embed_tokens.rows", _seen_as(tensor, (rows, blocks * size)))
        self._become(
            lookup, "GatherBlockQuantized", [flat, lookup.inputs[1], *others],
            bits=nbits.width(bits), block_size=block, gather_axis=0, quantize_axis=1,
            columns=matrix.shape[1] if matrix.shape[1] % block else None,
        )  # fmt: skip
        self._graph.initializers.pop(EMBEDDING)

    def _plain(self, name: str, transposed: bool = False) -> None:
        """In float32; `transposed`: it is stored as (columns, rows) of the checkpoint."""
        matrix = self._deferred.pop(name)
        matrix = matrix.T if transposed else matrix
        values = evaluate(matrix, self._merged.tensor)
        by_rows = values.reshape(-1, values.shape[-1])
        self._landed(matrix, values, lambda rows: by_rows[rows])
        self._keep(name, values.T if transposed else values)

    def _coded(self, matrix: Any, bits: int) -> tuple[gptq_layout.Codes, int]:
        """Codes of a matrix and their block: given ones, or the nearest."""
        self.facts["matrices"] += 1
        values = evaluate(matrix, self._merged.tensor)
        parts = {name: codes for name in leaves(matrix) if (codes := self._codes_of(name))}
        codes = self._given(matrix, parts)
        block = nbits.block_of(codes.groups) if codes else None
        if codes is None or block is None:
            self.facts["inexact"] += len(parts) == len(leaves(matrix))
            block = self._rule.block
            codes = nbits.rounded(values, bits, block)
        else:
            self.facts["coded"] += 1
        width = values.shape[1]
        self._landed(matrix, values, lambda rows: codes.take(rows).values()[:, :width])
        return codes, block

    def _given(self, matrix: Any, parts: dict[str, gptq_layout.Codes]) -> gptq_layout.Codes | None:
        """The codes of a matrix whose rows are those of layers that have the same kind of codes."""
        first = next(iter(parts.values()), None)
        if first is None or len(parts) < len(leaves(matrix)):
            return None
        if any(part.bits != first.bits or not np.array_equal(part.groups, first.groups)
               for part in parts.values()):  # fmt: skip
            return None
        _, starts, groups = np.unique(first.groups, return_index=True, return_inverse=True)

        def arranged(of: Callable[[gptq_layout.Codes], npt.NDArray[Any]]) -> npt.NDArray[Any]:
            return evaluate(matrix, lambda name: of(parts[name]))

        scales = arranged(lambda part: part.scales.take(part.groups, axis=1))[:, starts]
        zeros = arranged(lambda part: part.zeros.take(part.groups, axis=1))[:, starts]
        codes_ = arranged(lambda part: part.codes)
        return gptq_layout.Codes(codes_, scales, zeros, groups.astype(np.int32), first.bits)

    def _codes_of(self, name: str) -> gptq_layout.Codes | None:
        if self._solved and name in self._solved:
            return self._rule.kind.coded(self._solved.read(name))
        return self._merged.codes(name)

    def _landed(self, matrix: Any, given: Array, kept: Callable[[Rows], Array]) -> None:
        """Give the proof sampled rows of each of the checkpoint's tensors in a matrix.

        `given`: the whole float32 matrix; `kept`: rows -> the values that the type kept of them.
        """
        names = leaves(matrix)

        def by_rows(read: Callable[[str], npt.NDArray[Any]]) -> npt.NDArray[Any]:
            found = evaluate(matrix, read)
            return found.reshape(-1, found.shape[-1])

        given = given.reshape(-1, given.shape[-1])
        numbers = {name: number for number, name in enumerate(names)}
        if len(names) > 1:
            owners = by_rows(lambda name: self._all(name, np.int16(numbers[name])))[:, 0]
        else:
            owners = np.zeros(len(given), np.int16)
        for name in names:
            if len(names) > FEW and not self._merged.adapted(name):
                continue
            rows = np.flatnonzero(owners == numbers[name])
            rows = rows[sampled_rows(len(rows), given.shape[1])]
            before, delta = (
                None if values is None else by_rows(self._alone(name, values))[rows]
                for values in self._merged.addends(name, slice(None))
            )
            assert before is not None
            self._landing.add(name, before, delta, given[rows], kept(rows))

    def _alone(self, name: str, values: Array) -> Callable[[str], npt.NDArray[Any]]:
        """Reads `values` for one tensor of the checkpoint, and zeros for every other."""
        return lambda leaf: values if leaf == name else self._all(leaf, np.float32(0))

    def _all(self, name: str, value: np.generic) -> npt.NDArray[Any]:
        """A tensor's shape, full of one value."""
        return np.broadcast_to(value, self._merged.shapes[name])

    def _store(self, base: str, codes: gptq_layout.Codes, block: int) -> list[Any]:
        arrays = zip(PARTS, nbits.arrays(codes, block), strict=True)
        return [self._keep(f"{base}.{part}", array) for part, array in arrays if array is not None]

    def _become(
        self, node: Any, op: str, inputs: list[Any], columns: int | None = None, **attributes: Any
    ) -> None:
        """Put another operator of ONNX Runtime's in the place of a node; `columns`: how many of its
        output's are kept."""
        import onnx_ir as ir

        new = [ir.node(op, inputs, attributes, domain="com.microsoft", name=f"{node.name}_{op}")]
        if columns is not None:
            bounds = [self._give(f"{node.name}.{name}", ir.tensor(np.array([value]), name=name))
                      for name, value in (("start", 0), ("end", columns), ("axis", -1))]  # fmt: skip
            new.append(ir.node("Slice", [*new[0].outputs, *bounds], name=f"{node.name}_Slice"))
        ir.convenience.replace_nodes_and_values(
            self._graph, node, [node], new, node.outputs, new[-1].outputs
        )

    def _keep(self, name: str, array: npt.NDArray[Any]) -> Any:
        """Write the values of a constant, which the graph may have or not; the constant."""
        import onnx_ir as ir

        array = np.ascontiguousarray(array)
        self._file.write(b"\0" * (-self._file.tell() % ALIGN))
        kind, shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
        place = self._file.tell(), array.nbytes
        array.tofile(self._file)
        return self._give(name, ir.ExternalTensor(DATA, *place, kind, shape=shape, name=name))

    def _give(self, name: str, tensor: Any) -> Any:
        import onnx_ir as ir

        value = self._graph.initializers.get(name) or ir.Value(name=name)
        value.const_value, value.dtype, value.shape = tensor, tensor.dtype, tensor.shape
        if name not in self._graph.initializers:
            self._graph.register_initializer(value)
        return value


def _seen_as(tensor: Any, shape: tuple[int, ...]) -> Any:
    """The bytes of another constant, in another shape."""
    import onnx_ir as ir

    return ir.ExternalTensor(
        tensor.location, tensor.offset, tensor.length, tensor.dtype, shape=ir.Shape(shape), name=""
    )


def _matters(layer: int, layers: int) -> bool:
    """Of which layers llama.cpp gives sensitive matrices more bits.

    https://github.com/ggml-org/llama.cpp/blob/36667c8edcded08063ed51c7d57e9e086bbfc903/src/llama-quant.cpp#L136
    """
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
