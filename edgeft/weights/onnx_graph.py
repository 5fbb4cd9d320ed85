"""An ONNX folder -> its graph without the weights, checked before an engine opens it.

    graph = ONNXGraph(Path("onnx-int4"))            # InputError for a folder that is not whole
    graph.operators()                               # {"MatMulNBits (4 bits, 32 columns)": 121, …}
    graph.bytes_per_token(context=4096)

`edgeft.runtimes.onnx_session` opens it with the logits of all tokens.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeft.errors import InputError, require
from edgeft.files import is_file
from edgeft.weights.onnx_config import CONFIG_FILE, read_config

CODE_UNITS = {"bits": "bits", "block_size": "columns"}
"""attribute of an operator on codes -> its unit"""
EXPERT_OPERATORS = ("MoE", "QMoE")
FIRST_EXPERT_INPUT = 2
"""inputs of an expert operator before its weights: states and router logits"""
LOOPS = ("Loop", "Scan", "SequenceMap")
"""operators that repeat a graph, without end if it says so; no exporter of edgeft writes them"""
DOMAINS = ("", "ai.onnx", "com.microsoft")
"""of the operators that onnxruntime has; others come from a library"""
CACHE_BYTES = 4
"""of a number in the cache of keys and values: float32"""


class ONNXGraph:
    """model.onnx without its weights.

    InputError where genai_config.json, the graph or the files of its weights are broken.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        config = read_config(folder)
        self.file = config.file
        self.context, self.vocabulary = config.context, config.vocabulary
        self.head_size, self.stops = config.head_size, config.stops
        self.proto = _parse(self.file)
        """onnx.ModelProto"""
        _check_texts(self.file, self.proto)
        _check_operators(self.file, self.proto)
        _check_cache(self.file, self.proto.graph, config.head_size, config.kv_heads)
        _check_weight_files(self.file, self.proto)

    @property
    def opset(self) -> int:
        """Version of the standard operators."""
        entries = self.proto.opset_import
        return next(int(entry.version) for entry in entries if entry.domain in ("", "ai.onnx"))

    @property
    def size(self) -> int:
        """Bytes of the graph and of its weights."""
        places = map(_place, self.proto.graph.initializer)
        names = {place["location"] for place in places if "location" in place}
        files = {self.file, *(self.folder / name for name in names)}
        return sum(file.stat().st_size for file in files)

    def operators(self) -> dict[str, int]:
        """Operator -> count, most frequent first; those on codes with bits and block size."""
        count = collections.Counter(_described(node) for node in self.proto.graph.node)
        return dict(count.most_common())

    def bytes_per_token(self, context: int) -> int:
        """Bytes that are read to generate one token.

        These are the constants without look-up tables, the chosen share of the experts, and the
        cache of `context` tokens.
        """
        graph = self.proto.graph
        read = _multiplied(graph)
        experts, chosen = _experts(graph)
        total = 0
        for tensor in graph.initializer:
            if tensor.name in read:
                size = int(_place(tensor).get("length", 0)) or len(tensor.raw_data)
                if tensor.name in experts and chosen:
                    size = size * chosen // tensor.dims[0]
                total += size
        return total + _cache_bytes(graph, context)


def _parse(file: Path) -> Any:
    """The graph as onnx.ModelProto; InputError for one that onnxruntime does not know."""
    onnx = require("onnx", "onnx")
    try:
        proto = onnx.load(file, load_external_data=False)
    except Exception as error:  # noqa: BLE001 - protobuf's errors share no class
        reason = str(error).partition("\n")[0]
        raise InputError(f"{file} is not an ONNX model: {reason}", "export it again") from None
    newest = onnx.defs.onnx_opset_version()
    versions = {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import}
    opset = versions.get("ai.onnx", 0)
    if not 1 <= opset <= newest:
        raise InputError(
            f"{file} has opset {opset}, this onnxruntime knows 1 to {newest}",
            "export it again, or update onnxruntime",
        )
    return proto


def _check_texts(file: Path, proto: Any) -> None:
    """InputError for a text that is no UTF-8: protobuf returns its bytes, or raises when it is read."""
    try:
        whole = all(isinstance(text, str) for text in _texts(proto))
    except UnicodeDecodeError:
        whole = False
    if not whole:
        raise InputError(f"{file} has a name that is not UTF-8", "export it again")


def _texts(message: Any) -> Iterator[Any]:
    """Every text of a protobuf message and of those in it."""
    for field, value in message.ListFields():
        values = (
            [value] if isinstance(value, (str, bytes)) or hasattr(value, "ListFields") else value
        )
        if field.message_type:
            for item in values:
                yield from _texts(item)
        elif field.type == field.TYPE_STRING:
            yield from values


def _check_operators(file: Path, proto: Any) -> None:
    """InputError for a graph that may run without end, or that calls code of its own."""
    if proto.functions:
        raise InputError(f"{file} has functions of its own", "export it again")
    for node in _nodes(proto.graph):
        if node.domain not in DOMAINS or node.op_type in LOOPS:
            raise InputError(f"{file} has the operator {node.op_type[:60]!r}", "export it again")


def _nodes(graph: Any) -> Iterator[Any]:
    """The nodes of a graph and of the graphs in them."""
    for node in graph.node:
        yield node
        for entry in node.attribute:
            for inner in (entry.g, *entry.graphs):
                yield from _nodes(inner)


def _check_cache(file: Path, graph: Any, head_size: int, kv_heads: int | None) -> None:
    """InputError where genai_config.json makes the engine allocate another cache than the graph has."""
    for value in graph.output[1:]:
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        named = [(kv_heads or dims[1], dims[1]), (head_size, dims[3])] if len(dims) == 4 else []
        if not named or any(shape and stated != shape for stated, shape in named):
            raise InputError(
                f"cannot load {file}: {value.name[:60]} has the shape {dims}, {CONFIG_FILE} says head_size "
                f"{head_size} and num_key_value_heads {kv_heads}",
                "export it again",
            )


def _check_weight_files(file: Path, proto: Any) -> None:
    """InputError where a weight is not inside a file of the graph's folder."""
    for tensor in proto.graph.initializer:
        if place := _place(tensor):
            _check_weight_file(file, tensor.name, place)


def _check_weight_file(graph: Path, tensor: str, place: dict[str, str]) -> None:
    file = graph.parent / place.get("location", "")
    if file.parent != graph.parent or not is_file(file):
        raise InputError(
            f"{graph}: its weights lack {place.get('location', '')[:100]!r}",
            "keep all files of the folder together",
        )
    try:
        start, length = int(place.get("offset", 0)), int(place.get("length", 0))
    except ValueError:
        start = length = -1
    if min(start, length) < 0:
        raise InputError(f"{graph} does not say where {tensor} lies", "export it again")
    size, end = file.stat().st_size, start + length
    if end > size:
        raise InputError(f"{file} is truncated: {size} of at least {end} bytes", "export it again")


def _place(tensor: Any) -> dict[str, str]:
    """location, offset and length of a constant in another file; {} for one in the graph."""
    return {entry.key: entry.value for entry in tensor.external_data}


def _described(node: Any) -> str:
    numbers = {entry.name: entry.i for entry in node.attribute}
    units = [f"{numbers[name]} {unit}" for name, unit in CODE_UNITS.items() if name in numbers]
    return f"{node.op_type} ({', '.join(units)})" if units else str(node.op_type)


def _multiplied(graph: Any) -> set[str]:
    """Names that an operator reads as a whole: all inputs but those of look-ups alone."""
    return {name for node in graph.node if not node.op_type.startswith("Gather")
            for name in node.input}  # fmt: skip


def _experts(graph: Any) -> tuple[set[str], int]:
    """Names of the experts' weights, and how many experts read one token (0: there are none)."""
    nodes = [node for node in graph.node if node.op_type in EXPERT_OPERATORS]
    names = {name for node in nodes for name in node.input[FIRST_EXPERT_INPUT:]}
    chosen = (entry.i for node in nodes for entry in node.attribute if entry.name == "k")
    return names, max(chosen, default=0)


def _cache_bytes(graph: Any, context: int) -> int:
    """Of keys and values: every output but the logits, (batch, heads, tokens, columns)."""
    total = 0
    for value in graph.output[1:]:
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        total += CACHE_BYTES * dims[1] * dims[3] * context
    return total
