"""Options of an export."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeft.adapter.read import Weighted


@dataclass(frozen=True)
class ExportOptions:
    out: Path
    """folder of the artifacts"""
    adapter: tuple[Weighted, ...] = ()
    """peft's format, summed by weight; none exports the base as it is"""
    base: str | None = None
    """as for `edgeft.base.resolve.resolve`; default: the adapter's own"""
    formats: tuple[str, ...] = ("gguf",)
    quants: tuple[str, ...] = ()
    merge_base: Literal["auto", "w16", "nf4", "fp4"] = "auto"
    """auto: w16 or nf4, the one with the smaller loss on the validation split"""
    double_quant: bool = True
    """whether the 4-bit base of the training was quantized twice (bitsandbytes' use_double_quant)"""
    validation: Path | None = None
    """for auto; default: the split that training held out"""
    imatrix: str | None = None
    """a file in llama.cpp's format, or auto: collected on the chats that were learned"""
    calibration: Path | None = None
    """chats or plain text for GPTQ and for `imatrix` auto; default: the chats of the training"""
    calibration_tokens: int = 32_768
    """of it that are used at most"""
    group_size: int | None = None
    """of GPTQ's own format and of ONNX: columns that share a scale, -1 for all; None: the format's"""
    symmetric: bool = True
    """of GPTQ's own format"""
    damp: float = 0.01
    """of GPTQ: share of the mean diagonal of the Hessian that is added to it"""
    offload: bool = False
    """GPTQ keeps its activations in a file"""
    tensor_types: tuple[tuple[str, str], ...] = ()
    """(regex, type) for tensors that shall not have what the quantization gives them"""
    live: bool = True
    """compare logits with the live adapter, where torch is installed"""
    threads: int = len(os.sched_getaffinity(0))
    overwrite: bool = False
