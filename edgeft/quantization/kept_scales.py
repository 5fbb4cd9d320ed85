"""A GGUF file -> its values, and for other weights the nearest values that the file's scales allow.

    file = KeptScales(Path("gptq-q4_0.gguf"), base.card, base.config, shapes)
    start = file.start(name, rows)              # float32: where a training from this file begins
    data = file.nearest(name, rows, weights)    # the file's bytes with the codes of these weights

A training from a file (`--ship-from`) moves codes and keeps scales. A code that LoRA's change had to move
by half a step at once would never move. So the weights start not at the file's values but at places drawn
within their steps: a change of a tenth of a step moves a tenth of the codes, and the sum of the moves is
the change (non-subtractive dither, Gray and Stockham 1993, doi.org/10.1109/18.256489). The places depend on
the tensor's name, row and column alone.

Names, rows and shapes are those of the checkpoint.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgeft.errors import InputError
from edgeft.models import Card
from edgeft.quantization import ggml
from edgeft.quantization.ggml_blocks import Array, Bytes, codes_of, grid_of, supports, with_codes
from edgeft.quantization.nearest import EvenScales
from edgeft.weights import gguf_reader

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

    from edgeft.weights.checkpoint import Rows

WIDTH = 0.99
"""of the places within a step: none is on the border to the next code"""


class KeptScales:
    """The quantized tensors of a GGUF file; safe for threads."""

    def __init__(
        self, path: Path, card: Card, config: Mapping[str, Any], shapes: Mapping[str, Any]
    ) -> None:
        """`shapes`: of the checkpoint's tensors. InputError where the file is not of this model."""
        self.path = path
        header = gguf_reader.read(path)
        self._bytes = np.memmap(path, np.uint8, "r")  # also if another file takes its name
        config = {**card.defaults, **config}
        self._places: dict[str, tuple[gguf_reader.Tensor, npt.NDArray[np.intp] | None]] = {}
        self.vectors: dict[str, Array] = {}
        """norms and biases of the file, float32"""
        for name, shape in shapes.items():
            names = [n for n in card.gguf_names(name)[0] if n in header.tensors]
            if not names or len(shape) > 2:
                continue
            tensor, transform = header.tensors[names[0]], card.transform(names[0])
            if tensor.shape != transform.shape(tuple(shape), config):
                raise InputError(f"{path}: {names[0]} is of another model than the base")
            if not transform.picks_rows:  # a norm that the file has around 1
                continue
            rows = transform.source_rows(slice(None), tuple(shape), config)
            place = None if isinstance(rows, slice) else np.argsort(rows)
            if len(shape) == 1:
                values = self._stored(tensor)[0].view(np.float32)
                self.vectors[name] = values.copy() if place is None else values[place]
            else:
                self._places[name] = tensor, place

    def type_of(self, name: str) -> GGMLQuantizationType | None:
        """None for a tensor that is no matrix of the file."""
        return self._places[name][0].type if name in self._places else None

    def moves(self, name: str) -> bool:
        """Whether the tensor's values are evenly spaced, so that a training can move its codes."""
        qtype = self.type_of(name)
        return qtype is not None and supports(qtype)

    def data(self, name: str, rows: Rows) -> Bytes:
        """The file's bytes, (rows, bytes per row)."""
        tensor, place = self._places[name]
        return np.ascontiguousarray(self._stored(tensor)[rows if place is None else place[rows]])

    def _stored(self, tensor: gguf_reader.Tensor) -> Bytes:
        """A view of all bytes of a matrix, or of a vector as one row, (rows, bytes per row)."""
        rows = tensor.shape[0] if len(tensor.shape) > 1 else 1
        stop = tensor.offset + rows * tensor.row_bytes
        return self._bytes[tensor.offset : stop].reshape(rows, tensor.row_bytes)

    def values(self, name: str, rows: Rows) -> Array:
        """The file's values, float32."""
        return ggml.dequantize(self.data(name, rows), self._places[name][0].type)

    def scales(self, name: str, rows: Rows) -> EvenScales:
        return EvenScales(grid_of(self.data(name, rows), self._places[name][0].type))

    def start(self, name: str, rows: Rows) -> Array:
        """Float32 places within the steps of the file's values, which are the nearest to them."""
        qtype, data = self._places[name][0].type, self.data(name, rows)
        grid, values = grid_of(data, qtype), ggml.dequantize(data, qtype)
        numbers = np.arange(self._places[name][0].shape[0])[rows]
        places = _places(name, numbers, values.shape[1]).reshape(*grid.step.shape, grid.run)
        places *= np.abs(grid.step)[..., None]
        values += places.reshape(values.shape)
        return values

    def nearest(self, name: str, rows: Rows, weights: Array) -> Bytes:
        """The file's bytes with the codes that are nearest to `weights`, (rows, columns) float32.

        ValueError for weights that are not finite.
        """
        if not np.isfinite(weights).all():
            raise ValueError(f"{name}: not every weight is finite")
        qtype, data = self._places[name][0].type, self.data(name, rows)
        grid = grid_of(data, qtype)
        codes = EvenScales(grid).codes(weights)
        flat = np.repeat(grid.step == 0, grid.run, axis=1)  # there all codes mean the same
        return with_codes(data, np.where(flat, codes_of(data, qtype), codes), qtype)


def _places(name: str, rows: npt.NDArray[np.intp], columns: int) -> Array:
    """Numbers from -WIDTH / 2 to WIDTH / 2, (rows, columns), by SplitMix64 (Steele et al. 2014)."""
    z: npt.NDArray[np.uint64] = rows.astype(np.uint64)[:, None] * np.uint64(columns)
    z = np.add(z, np.arange(columns, dtype=np.uint64))
    z += np.uint64(zlib.crc32(name.encode())) << np.uint64(32)
    z *= np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z ^= z >> np.uint64(shift)
        z *= np.uint64(factor)
    z ^= z >> np.uint64(31)
    unit = (z >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
    places: Array = (unit - np.float32(0.5)) * np.float32(WIDTH)
    return places
