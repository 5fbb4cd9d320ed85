"""Weight files without engines: safetensors, GGUF, GPTQ, ONNX and the importance matrix."""

from edgeft.weights.checkpoint import Array, Checkpoint, Rows, write_safetensors
from edgeft.weights.gptq_layout import Codes
from edgeft.weights.imatrix import Imatrix
from edgeft.weights.onnx_graph import ONNXGraph

__all__ = ["Array", "Checkpoint", "Codes", "Imatrix", "ONNXGraph", "Rows", "write_safetensors"]
