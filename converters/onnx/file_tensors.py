"""Base + quantization of an ONNX folder -> how it rounds each weight, for a training with --ship.

    file_tensors(open_base(folder), "int4")["model.layers.0.mlp.up_proj.weight"].rounding.name
    digests(Path("onnx-int4"), merged, names)                   # of a finished folder

A matrix of the graph may be made of several weights (queries, keys and values), and a weight may be cut into
several matrices. The builder's lazy matrices say which row is which.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft.converters.onnx import matmul_nbits as nbits
from edgeft.converters.onnx.convert import build_graph, make_plan
from edgeft.converters.onnx.recipe import HEAD_NODE
from edgeft.converters.options import ConvertOptions
from edgeft.errors import FormatError
from edgeft.merge.view import Merged, open_merged
from edgeft.quantization.rounding import CodesRounding, FileTensor
from edgeft.weights.gptq_layout import Codes
from edgeft.weights.onnx_graph import ONNXGraph
from edgeft.weights.text_base import TextBase

Places = npt.NDArray[np.intp]
HINT = "train without --ship"


@dataclass(frozen=True)
class Piece:
    """Rows of a weight in a matrix of the graph."""

    node: str
    """the product with the matrix; of an embedding the output layer's, which has the same bits"""
    constant: str
    """of the graph: its name without .codes and .scales"""
    places: Places
    """rows of the matrix"""
    rows: Places
    """rows of the weight that lie there"""


def file_tensors(base: TextBase, quant: str) -> dict[str, FileTensor]:
    """Name in the checkpoint -> its place in the folder, with the exporter's default blocks.

    FormatError for a mixture of experts, a base that GPTQ quantized, and a weight that the folder does not
    hold row by row; MissingExtra without the packages of the extra onnx.
    """
    merged = open_merged(base.folder, None)
    if base.card.fused or any(merged.codes(name) for name in merged.shapes):
        kind = "experts" if base.card.fused else "codes of GPTQ"
        raise FormatError(f"--ship {quant}: the {kind} of {base.folder.name} do not train", HINT)
    recipe = make_plan(merged, quant, ConvertOptions())
    tensors, layers = {}, base.config["num_hidden_layers"]
    for name, pieces in pieces_of(merged).items():
        order = np.concatenate([piece.rows for piece in pieces])
        bits = {recipe.bits_of(piece.node, layers) for piece in pieces}
        natural = np.arange(merged.shapes[name][0])
        if len(bits) > 1 or not np.array_equal(np.sort(order), natural):
            raise FormatError(f"--ship {quant}: {name} is not stored row by row in one type", HINT)
        if rounded := bits.pop():
            placed = None if np.array_equal(order, natural) else order
            tensors[name] = FileTensor(name, recipe.nearest(rounded), placed)
    return tensors


def digests(path: Path, merged: Merged, names: Collection[str]) -> dict[str, tuple[str, str]]:
    """Name in the checkpoint -> (rounding, hash) of those of `names` that the folder has as codes."""
    coded = _Coded(path)
    found: dict[str, tuple[str, str]] = {}
    for name, pieces in pieces_of(merged).items():
        if name in names and all(piece.constant in coded for piece in pieces):
            parts = [coded[piece.constant] for piece in pieces]
            rounding = parts[0][0]
            if all(part[0] == rounding for part in parts):
                stored = (part[1].take(p.places) for part, p in zip(parts, pieces, strict=True))
                found[name] = rounding.name, rounding.digest(stored)
    return found


def pieces_of(merged: Merged) -> dict[str, list[Piece]]:
    """Name in the checkpoint -> where the graph has its rows, for every weight of a product.

    FormatError where a row of the graph is none of a weight.
    """
    with tempfile.TemporaryDirectory(prefix="graph-") as folder:
        builder = build_graph(merged, Path(folder))
    pieces = defaultdict(list)
    for node, constant, matrix in _matrices(builder, merged):
        for source, places, rows in _rows(matrix, merged):
            pieces[source].append(Piece(node, constant.removesuffix(".weight"), places, rows))
    return pieces


def _matrices(builder: Any, merged: Merged) -> Iterator[tuple[str, str, Any]]:
    """(node, constant, lazy matrix) of the products, and of an embedding of its own."""
    from edgeft.converters.onnx.weights import EMBEDDING

    for node in builder.graph:
        if node.op_type == "MatMul" and (constant := node.inputs[1].name) in builder.lazy:
            yield node.name, constant, builder.lazy[constant].T
    if not merged.tied:
        yield HEAD_NODE, EMBEDDING, builder.lazy[EMBEDDING]


def _rows(matrix: Any, merged: Merged) -> Iterator[tuple[str, Places, Places]]:
    """(weight, rows of the matrix, rows of the weight) of each weight in a matrix.

    One weight of the same shape is the matrix itself: it may be too large for the numbers of its rows.
    """
    names = matrix.sources()
    if len(names) == 1 and tuple(matrix.shape) == merged.shapes[names[0]]:
        every = np.arange(matrix.shape[0])
        yield names[0], every, every
        return
    ends = np.cumsum([merged.shapes[name][0] for name in names])
    starts = dict(
        zip(names, (ends - [merged.shapes[name][0] for name in names]).tolist(), strict=True)
    )

    def numbers(name: str) -> npt.NDArray[np.int32]:
        rows, columns = merged.shapes[name]
        return np.repeat(np.arange(rows, dtype=np.int32)[:, None] + starts[name], columns, axis=1)

    def columns(name: str) -> npt.NDArray[np.int32]:
        return np.tile(
            np.arange(merged.shapes[name][1], dtype=np.int32), (merged.shapes[name][0], 1)
        )

    found, order = matrix.evaluate(numbers), matrix.evaluate(columns)
    if (found != found[:, :1]).any() or (order != np.arange(order.shape[1])).any():
        raise FormatError(f"the graph has no whole rows of {', '.join(names)}", HINT)
    owner = np.searchsorted(ends, found[:, 0], side="right")
    for number, name in enumerate(names):
        places = np.flatnonzero(owner == number)
        yield name, places, found[places, 0] - starts[name]


class _Coded:
    """Constants of a folder that are codes: `coded["lm_head.MatMul"]` -> (rounding, codes)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        graph = ONNXGraph(folder).proto.graph
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._nodes = {}
        for node in graph.node:
            if node.op_type in ("MatMulNBits", "GatherBlockQuantized"):
                looked_up = node.op_type == "GatherBlockQuantized"
                codes, scales, *zeros = (
                    [node.input[0], *node.input[2:]] if looked_up else node.input[1:]
                )
                numbers = {entry.name: entry.i for entry in node.attribute}
                self._nodes[scales.removesuffix(".scales")] = (codes, scales, zeros, numbers)

    def __contains__(self, constant: str) -> bool:
        return constant in self._nodes

    def __getitem__(self, constant: str) -> tuple[CodesRounding, Codes]:
        codes, scales, zeros, numbers = self._nodes[constant]
        bits = numbers["bits"]
        arrays = [self._array(name) for name in (codes, scales, *filter(None, zeros))]
        unpacked = nbits.unpack(arrays[0], arrays[1], arrays[2] if len(arrays) > 2 else None, bits)
        return CodesRounding(bits, numbers["block_size"], "f32"), unpacked

    def _array(self, name: str) -> npt.NDArray[Any]:
        from onnx import numpy_helper

        array: npt.NDArray[Any] = numpy_helper.to_array(self._tensors[name], str(self._folder))
        return array
