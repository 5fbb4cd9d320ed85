"""An importance matrix <-> llama.cpp's file: the mean square of the inputs of each column.

    imatrix = read(Path("imatrix.gguf"))             # written by llama-imatrix or by `write`
    weights = imatrix.importance("blk.0.attn_q.weight")
    write(imatrix, Path("copy.gguf"))                # llama-quantize and llama-imatrix read it

A quantizer rounds the columns with the largest inputs most carefully.
`edgeft.export.collect_imatrix.collect` collects the numbers from a model and token sequences.
The format is that of llama.cpp's tools/imatrix/imatrix.cpp (`save_imatrix`) and
common/imatrix-loader.cpp: a GGUF file with two float32 tensors per weight, NAME.in_sum2 and
NAME.counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft.errors import InputError
from edgeft.weights import gguf_reader
from edgeft.weights.gguf_reader import Header, Tensor

SUMS, COUNTS = ".in_sum2", ".counts"
"""after a weight's name: names of its tensors in the file"""
_HINT = "llama-imatrix makes one; with --in-file it also converts the older .dat format"


@dataclass(frozen=True)
class Sums:
    """The inputs of one weight; a weight without experts has one row."""

    in_sum2: npt.NDArray[np.float32]
    """(experts, columns): sums of the squares of the inputs"""
    counts: npt.NDArray[np.float32]
    """(experts,): number of inputs, 0 for an expert that was never chosen"""


@dataclass(frozen=True)
class Imatrix:
    """The importance matrix of a model."""

    tensors: dict[str, Sums]
    """by GGUF name of the weight"""
    datasets: tuple[str, ...]
    """names of the texts; llama-quantize copies them into the model it writes"""
    chunk_size: int
    """tokens"""
    chunk_count: int

    def importance(self, name: str) -> npt.NDArray[np.float32] | None:
        """Mean squares (experts, columns); None for a weight that has none.

        llama-quantize's numbers: 1 in every column of an expert that was never chosen
        (tools/quantize/quantize.cpp: `load_imatrix`).
        """
        sums = self.tensors.get(name)
        if sums is None:
            return None
        chosen = sums.counts[:, None] > 0
        mean = np.ones_like(sums.in_sum2)
        np.divide(sums.in_sum2, sums.counts[:, None], out=mean, where=chosen)
        return mean


def write(imatrix: Imatrix, path: Path) -> None:
    """Write llama.cpp's file."""
    from gguf import GGUFWriter, Keys

    writer = GGUFWriter(path, "")
    try:
        writer.kv_data[0].clear()  # there is no architecture
        writer.add_type("imatrix")
        writer.add_array(Keys.IMatrix.DATASETS, list(imatrix.datasets))
        writer.add_uint32(Keys.IMatrix.CHUNK_COUNT, imatrix.chunk_count)
        writer.add_uint32(Keys.IMatrix.CHUNK_SIZE, imatrix.chunk_size)
        for name, sums in sorted(imatrix.tensors.items()):
            writer.add_tensor(name + SUMS, sums.in_sum2)
            writer.add_tensor(name + COUNTS, sums.counts[:, None])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def read(path: Path) -> Imatrix:
    """InputError for a broken file, and where llama-quantize would refuse it."""
    from gguf import Keys

    if not path.is_file():
        raise InputError(f"no such importance matrix: {path}", "check the path")
    try:
        header = gguf_reader.read(path)
        raw = {name: _float32(header, tensor) for name, tensor in header.tensors.items()}
        keys = (Keys.IMatrix.DATASETS, Keys.IMatrix.CHUNK_SIZE, Keys.IMatrix.CHUNK_COUNT)
        datasets, chunk_size, chunk_count = (_value(header, key) for key in keys)
        tensors = {
            name.removesuffix(SUMS): _sums(name.removesuffix(SUMS), raw)
            for name in raw
            if name.endswith(SUMS)
        }
        if not tensors:
            raise ValueError("it holds no sums")
        return Imatrix(tensors, tuple(map(str, datasets)), int(chunk_size), int(chunk_count))
    except InputError as error:
        raise InputError(error.message, _HINT) from None
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{path} is not a whole imatrix file: {error}", _HINT) from None


def _float32(header: Header, tensor: Tensor) -> npt.NDArray[np.float32]:
    if tensor.type.name != "F32":
        raise ValueError(f"{tensor.name} is not float32")
    return np.array(gguf_reader.data(header, tensor)).view(np.float32).reshape(-1)


def _value(header: Header, key: str) -> Any:
    if key not in header.meta:
        raise ValueError(f"{key} is missing")
    return header.meta[key]


def _sums(name: str, raw: dict[str, npt.NDArray[np.float32]]) -> Sums:
    if name + COUNTS not in raw:
        raise ValueError(f"{name} has sums without counts")
    values, counts = raw[name + SUMS], np.rint(raw[name + COUNTS])
    if not (np.isfinite(values).all() and np.isfinite(counts).all()):
        raise ValueError(f"{name} has values that are not finite")
    if not counts.size or values.size % counts.size:
        raise ValueError(f"{name} has {values.size} sums for {counts.size} counts")
    return Sums(values.reshape(counts.size, -1), counts)
