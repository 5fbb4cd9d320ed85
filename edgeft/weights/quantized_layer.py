"""A weight that a program quantized, stored in several tensors -> its rows in float32.

Each `…_layout.py` of this folder reads the files of one program:

    layers = layers(config, Tensors(stored, raw))        # name of a weight -> Layer
    layers["model.layers.0.mlp.up_proj.weight"].rows(slice(0, 64))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from edgeft.errors import InputError
from edgeft.weights.dtypes import Array, Rows, to_float32

LAYER_TYPES = ("GPTQ", "AWQ", "NF4", "FP4", "FP8", *(f"INT{bits}" for bits in range(1, 9)))
"""types of quantized weights"""
ACTIVATION_PARTS = frozenset(
    {"input_scale", "output_scale", "activation_scale", "input_scale_ub", "input_zero_point",
     "input_global_scale", "k_scale", "v_scale", "q_scale", "kv_scale"}
)  # fmt: skip
"""last words of tensors that quantize what flows between layers, and no weight"""


class StoredTensor(Protocol):
    """Where a tensor is stored."""

    @property
    def file(self) -> Path: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


class Grid(NamedTuple):
    """A matrix of scales or zero points in its stored form; only what is asked for is converted."""

    raw: npt.NDArray[Any]
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.raw.shape

    def rows(self, numbers: npt.NDArray[np.intp]) -> Array:
        return to_float32(self.raw[numbers], self.dtype)


class Tensors(NamedTuple):
    """The tensors of a checkpoint as they are stored."""

    stored: Mapping[str, StoredTensor]
    raw: Callable[[str], npt.NDArray[Any]]
    """stored values of a tensor, (rows, columns), mapped"""

    def values(self, name: str) -> Array:
        """A small tensor in float32, in its shape."""
        info = self.stored[name]
        return to_float32(self.raw(name), info.dtype).reshape(info.shape)

    def grid(self, name: str) -> Grid:
        """Scales as a matrix: (1, 1), (rows, 1), or blocks of rows x blocks of columns; mapped."""
        info, raw = self.stored[name], self.raw(name)
        dtype = "F8_E8M0" if info.dtype == "U8" else info.dtype  # MXFP8's powers of two
        return Grid(raw if len(info.shape) > 1 else raw.reshape(-1, 1), dtype)

    def refusal(self, name: str, problem: str) -> InputError:
        return InputError(f"{self.stored[name].file}: {name} {problem}", "download it again")


@dataclass(frozen=True)
class Layer:
    """A quantized weight."""

    dtype: str
    """one of LAYER_TYPES"""
    shape: tuple[int, int]
    parts: tuple[str, ...]
    """names of the tensors that hold it"""
    rows: Callable[[Rows], Array]
    """some of its rows, float32 (rows, columns)"""


LayerReader = Callable[[Mapping[str, Any], Tensors], dict[str, Layer]]
"""(quantization_config, tensors) -> name of a weight -> layer; InputError for a damaged layer"""
