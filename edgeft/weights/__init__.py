"""A file of weights <-> its tensors: safetensors, GGUF, GPTQ, ONNX, importance matrix; no engine."""

from edgeft.weights.checkpoint import Array, Checkpoint, Rows, Spec, write_safetensors
from edgeft.weights.gguf_reader import Header, Tensor
from edgeft.weights.gptq_layout import Codes
from edgeft.weights.imatrix import Imatrix
from edgeft.weights.onnx_config import DecoderConfig
from edgeft.weights.onnx_graph import ONNXGraph

__all__ = [
    "Array",
    "Checkpoint",
    "Codes",
    "DecoderConfig",
    "Header",
    "Imatrix",
    "ONNXGraph",
    "Rows",
    "Spec",
    "Tensor",
    "write_safetensors",
]
