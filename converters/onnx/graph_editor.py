"""A builder's graph + the file of its weights -> changed operators, and constants in the file.

    editor = GraphEditor(builder.graph, file)
    codes = editor.store("model.layers.0.mlp.up_proj.codes", array)
    editor.replace(node, "MatMulNBits", [node.inputs[0], codes], bits=4)

This module imports onnx_ir: import it inside functions.
"""

from __future__ import annotations

from typing import IO, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

DATA_FILE = "model.onnx.data"
ALIGNMENT_BYTES = 64
"""of an array in the file, as ONNX Runtime maps it"""
MAX_INLINE_BYTES = 1024
"""of a constant that stays in the graph"""
DOMAIN = "com.microsoft"
"""of ONNX Runtime's own operators"""


class GraphEditor:
    """Replaces nodes of an onnx_ir.Graph, and writes the values of its constants."""

    def __init__(self, graph: Any, file: IO[bytes]) -> None:
        """`file`: DATA_FILE beside the graph, open for writing."""
        self.graph, self._file = graph, file

    def nodes(self, operator: str) -> list[Any]:
        return [node for node in self.graph if node.op_type == operator]

    def store(self, name: str, array: npt.NDArray[Any]) -> Any:
        """Write the values of a constant to the file; the constant, new or already in the graph."""
        array = np.ascontiguousarray(array)
        self._file.write(b"\0" * (-self._file.tell() % ALIGNMENT_BYTES))
        dtype, shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
        place = self._file.tell(), array.nbytes
        self._file.write(array.reshape(-1).view(np.uint8).data)  # tofile's errors have no number
        tensor = ir.ExternalTensor(DATA_FILE, *place, dtype, shape=shape, name=name)
        return self.constant(name, tensor)

    def store_large(self) -> None:
        """Write the values of all constants that are large and still in the graph."""
        for name, value in list(self.graph.initializers.items()):
            tensor = value.const_value
            if not hasattr(tensor, "location") and tensor.nbytes > MAX_INLINE_BYTES:
                self.store(name, tensor.numpy())

    def constant(self, name: str, tensor: Any) -> Any:
        """A constant of this name with the values of an onnx_ir tensor."""
        value = self.graph.initializers.get(name) or ir.Value(name=name)
        value.const_value, value.dtype, value.shape = tensor, tensor.dtype, tensor.shape
        if name not in self.graph.initializers:
            self.graph.register_initializer(value)
        return value

    def reshaped(self, name: str, value: Any, shape: tuple[int, ...]) -> Any:
        """A constant with the bytes of another one in the file, in another shape."""
        tensor = value.const_value
        return self.constant(name, ir.ExternalTensor(
            tensor.location, tensor.offset, tensor.length, tensor.dtype,
            shape=ir.Shape(shape), name="",
        ))  # fmt: skip

    def remove(self, name: str) -> None:
        """Remove a constant."""
        self.graph.initializers.pop(name)

    def replace(
        self,
        node: Any,
        operator: str,
        inputs: list[Any],
        columns: int | None = None,
        **attributes: Any,
    ) -> None:
        """Put one of ONNX Runtime's operators in the place of a node.

        `columns`: keep only so many of its output's columns.
        """
        name = f"{node.name}_{operator}"
        new = [ir.node(operator, inputs, attributes, domain=DOMAIN, name=name)]
        if columns is not None:
            bounds = [
                self.constant(f"{node.name}.{bound}", ir.tensor(np.array([value]), name=bound))
                for bound, value in (("start", 0), ("end", columns), ("axis", -1))
            ]
            new.append(ir.node("Slice", [*new[0].outputs, *bounds], name=f"{node.name}_Slice"))
        ir.convenience.replace_nodes_and_values(
            self.graph, node, [node], new, node.outputs, new[-1].outputs
        )
