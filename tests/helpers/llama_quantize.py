"""llama-quantize's own function, and what a GGUF file holds: the oracle of types and bytes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft.quantization.tensor_types import FILE_TYPE

Array = npt.NDArray[np.float32]


def llama_quantize(
    source: Path,
    target: Path,
    quant: str,
    importance: dict[str, Array] | None = None,
    overrides: Sequence[tuple[str, str]] = (),
) -> bool:
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = 1
    params.ftype = FILE_TYPE[quant]
    if importance:
        entries = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()
        for entry, (name, weights) in zip(entries, importance.items(), strict=False):
            entry.name, entry.size = name.encode(), weights.size
            entry.data = weights.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = entries
    if overrides:
        table = (llama_cpp.llama_model_tensor_override * (len(overrides) + 1))()
        for row, (pattern, kind) in zip(table, overrides, strict=False):
            row.pattern, row.type = pattern.encode(), gguf_type(kind.upper())
        params.tt_overrides = table
    status = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(params)
    )
    return bool(status == 0)


def gguf_type(kind: int | str) -> Any:
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType[kind] if isinstance(kind, str) else GGMLQuantizationType(kind)


def read(path: Path) -> tuple[int, dict[str, tuple[int, bytes]]]:
    from gguf import GGUFReader

    reader = GGUFReader(path)
    tensors = {t.name: (int(t.tensor_type), t.data.tobytes()) for t in reader.tensors}
    return int(reader.fields["general.file_type"].contents()), tensors
