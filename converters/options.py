"""Options that every converter takes; each reads those that its format has."""

from __future__ import annotations

from dataclasses import dataclass

from edgeft.gptq.quantize import Calibration
from edgeft.weights.imatrix import Imatrix


@dataclass(frozen=True)
class ConvertOptions:
    """How to write an artifact, beside its quantization."""

    threads: int = 1
    """CPU threads"""
    tensor_types: tuple[tuple[str, str], ...] = ()
    """GGUF: (regular expression of tensor names, type) in place of the quantization's own type"""
    imatrix: Imatrix | None = None
    """GGUF: importance of input columns"""
    imatrix_pending: bool = False
    """GGUF: whether the importance matrix is collected after the plan is made"""
    calibration: Calibration | None = None
    """GPTQ: token sequences, and the folder of finished blocks"""
    group_size: int | None = None
    """GPTQ, ONNX: columns that share a scale; -1 for all (GPTQ); None for the format's default"""
    symmetric: bool = True
    """GPTQ: whether all zero points lie in the middle"""
