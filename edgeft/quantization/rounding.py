"""A type of a file -> how it rounds the rows of a weight, and the values that a runtime computes with.

    rounding = rounding_named("Q4_0")               # a type of ggml, by its own kernels
    rounding = rounding_named("int4_g32_f32")       # codes in groups of 32 columns with scales in float32
    stored = rounding.store(rows)                   # what the file holds of them
    rounding.values(stored, rows.shape[1])          # float32
    rounding.digest([stored])

Each row is rounded by itself and without calibration. Training with --ship computes with these values,
and the export compares the finished file with their hash.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from edgeft.quantization import ggml
from edgeft.quantization.ggml_blocks import Array
from edgeft.quantization.group_codes import nearest_codes
from edgeft.quantization.nearest import Scales, has_scales, scales_of
from edgeft.weights.gptq_layout import Codes

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

FAST_TYPES = frozenset({"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16"})
"""types that ggml quantizes at 700 MB/s and more on one core; K-quants at 40 to 190, IQ types at 10"""
K_QUANT_STEPS, IQ4_STEPS = 32, 64
"""steps of a training between two runs of ggml's quantizer, which takes as long as one to four of them"""
SCALE_TYPES = {"f16": np.float16, "f32": np.float32}


class Rounding(Protocol):
    """How one tensor of a file is rounded."""

    @property
    def name(self) -> str:
        """Such as Q4_0; `rounding_named` has its rounding."""

    @property
    def steps(self) -> int:
        """Steps of a training between two calls of `store`; 1 where it is fast."""

    @property
    def computes(self) -> bool:
        """Whether a training can compute the values in every step."""

    def store(self, values: Array, threads: int = 1) -> Any:
        """Of rows (rows, columns). ValueError for values that the type cannot hold."""

    def values(self, stored: Any, columns: int) -> Array:
        """What a runtime computes with, (rows, columns)."""

    def scales(self, stored: Any) -> Scales:
        """With which the nearest values are computed between two calls of `store`."""

    def digest(self, stored: Iterable[Any]) -> str:
        """Hash of a whole tensor, from its rows in the order of the file."""


@dataclass(frozen=True)
class FileTensor:
    """A weight in the file."""

    name: str
    """in the adapter's manifest: of a GGUF file its name there, else that of the checkpoint"""
    rounding: Rounding
    order: npt.NDArray[np.intp] | None
    """row of the weight for each row of the file; None: the same rows"""


@dataclass(frozen=True)
class GgmlRounding:
    """A type of ggml; what is stored are the bytes of the rows."""

    qtype: GGMLQuantizationType

    @property
    def name(self) -> str:
        return str(self.qtype.name)

    @property
    def steps(self) -> int:
        if self.name in FAST_TYPES:
            return 1
        return IQ4_STEPS if self.name in ("IQ4_NL", "IQ4_XS") else K_QUANT_STEPS

    @property
    def computes(self) -> bool:
        """The IQ types below 4 bits have no scales of their own for each value."""
        return self.name in FAST_TYPES or has_scales(self.qtype)

    def store(self, values: Array, threads: int = 1) -> npt.NDArray[np.uint8]:
        return ggml.quantize(values, self.qtype, threads)

    def values(self, stored: npt.NDArray[np.uint8], columns: int) -> Array:
        return ggml.dequantize(stored, self.qtype)

    def scales(self, stored: npt.NDArray[np.uint8]) -> Scales:
        return scales_of(stored, self.qtype)

    def digest(self, stored: Iterable[npt.NDArray[np.uint8]]) -> str:
        return ggml.digest(stored)


@dataclass(frozen=True)
class CodesRounding:
    """Symmetric codes in groups of columns, as GPTQ folders and ONNX Runtime have them."""

    bits: int
    columns: int
    """of a group; -1: all"""
    scale: str
    """a key of SCALE_TYPES"""

    @property
    def name(self) -> str:
        group = "row" if self.columns == -1 else f"g{self.columns}"
        return f"int{self.bits}_{group}_{self.scale}"

    @property
    def steps(self) -> int:
        return 1

    @property
    def computes(self) -> bool:
        return True

    def store(self, values: Array, threads: int = 1) -> Codes:
        return nearest_codes(values, self.bits, self.columns, SCALE_TYPES[self.scale], threads)

    def values(self, stored: Codes, columns: int) -> Array:
        return stored.values()[:, :columns]

    def scales(self, stored: Codes) -> Scales:
        raise NotImplementedError(f"{self.name} is rounded anew in every step")

    def digest(self, stored: Iterable[Codes]) -> str:
        """Of all codes, then all scales and zeros."""
        parts = list(stored)
        hashed = hashlib.blake2b(digest_size=16)
        for field in ("codes", "scales", "zeros"):
            for part in parts:
                hashed.update(np.ascontiguousarray(getattr(part, field)).data)
        return hashed.hexdigest()


def rounding_named(name: str) -> Rounding:
    """The rounding of `Rounding.name`. KeyError for a type that ggml does not have."""
    from gguf import GGMLQuantizationType

    if match := re.fullmatch(r"int(\d+)_(?:g(\d+)|row)_(f16|f32)", name):
        bits, columns, scale = match.groups()
        return CodesRounding(int(bits), int(columns or -1), scale)
    return GgmlRounding(GGMLQuantizationType[name])
