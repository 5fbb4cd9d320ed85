"""Files of weights <-> their tensors, without engines: safetensors, torch.save, GGUF, ONNX, imatrix.

`open_base` opens a base folder, quantized by one of several programs or not."""

from edgeft.weights.checkpoint import Array, Checkpoint, Rows, Spec, write_safetensors
from edgeft.weights.gguf_reader import Header, Tensor
from edgeft.weights.gptq_layout import Codes
from edgeft.weights.imatrix import Imatrix
from edgeft.weights.onnx_config import DecoderConfig
from edgeft.weights.onnx_graph import ONNXGraph
from edgeft.weights.text_base import TextBase, open_base

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
    "TextBase",
    "open_base",
    "write_safetensors",
]
