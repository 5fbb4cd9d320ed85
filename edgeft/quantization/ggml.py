"""float32 values <-> the bytes of a GGUF tensor, by ggml's own kernels.

    data = quantize(weight, GGMLQuantizationType.Q4_K, threads=4, importance=weights)
    values = dequantize(data, GGMLQuantizationType.Q4_K)

The bytes are those that `llama-quantize` writes, with and without an importance matrix; the tests
compare both. The kernels are in the libggml-base that llama-cpp-python contains, so that the library
which writes a file is the one that runs it. `dequantize` gives the values of
`gguf.dequantize`, faster.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import itertools
import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgeft.errors import EdgeftError

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

CHUNK_BYTES = 4 << 20
"""of float32 values that one thread quantizes at a time"""

UNQUANTIZED = ("F32", "F16", "BF16")
"""types without blocks"""

IMPORTANCE_LIMIT, VALUE_LIMIT = 1e18, 1e8
"""largest importance, and largest value for the IQ1 to IQ3 types. Beyond them sums in ggml's kernels
may overflow, and then the kernels end the process. llama.cpp refuses such values as well."""

_LIBRARY = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll", "libggml-base.dll")


def quantize(
    values: npt.NDArray[np.float32],
    qtype: GGMLQuantizationType,
    threads: int,
    importance: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.uint8]:
    """`values` (..., rows, columns) as `qtype`, (..., rows, bytes per row).

    Each row is quantized independently, so quantizing in blocks of rows gives the same bytes.
    `importance` is llama.cpp's imatrix: one weight per column, and for a stack of experts one row of
    weights per expert, (..., columns). ValueError, where llama-quantize refuses as well: for values
    that are not finite or overflow the type's half-precision numbers, and for a type that needs
    importance and gets none.
    """
    from gguf import GGML_QUANT_SIZES

    columns = values.shape[-1]
    block, block_bytes = GGML_QUANT_SIZES[qtype]
    if columns % block:
        raise ValueError(f"{qtype.name} needs a multiple of {block} columns, not {columns}")
    ggml = _library()
    if importance is None:
        if ggml.ggml_quantize_requires_imatrix(qtype):
            raise ValueError(f"{qtype.name} needs importance")
    elif importance.shape != (*values.shape[:-2], columns):
        raise ValueError(f"importance {importance.shape} does not fit values {values.shape}")
    elif not ((importance >= 0) & (importance <= IMPORTANCE_LIMIT)).all():
        raise ValueError(f"not every importance is between 0 and {IMPORTANCE_LIMIT:g}")
    experts = math.prod(values.shape[:-2])
    rows = values.shape[-2] if values.ndim > 1 else 1
    source = np.require(values, np.float32, ("C", "A")).reshape(experts, rows, columns)
    raw = np.empty((experts, rows, columns // block * block_bytes), np.uint8)
    weights = None
    if importance is not None:
        weights = np.require(importance, np.float32, ("C", "A")).reshape(experts, columns)
    step = max(1, CHUNK_BYTES // (4 * columns))

    def work(place: tuple[int, int]) -> None:
        expert, start = place
        chunk = source[expert, start : start + step]
        target = raw[expert, start : start + step]
        if not np.isfinite(chunk).all():
            raise ValueError("not every value is finite")
        if qtype.name.startswith(("IQ1", "IQ2", "IQ3")) and np.abs(chunk).max() > VALUE_LIMIT:
            raise ValueError(f"a value is too large for {qtype.name}")
        ggml.ggml_quantize_chunk(
            qtype,
            chunk.ctypes.data,
            target.ctypes.data,
            0,
            len(chunk),
            columns,
            None if weights is None else weights[expert].ctypes.data,
        )
        validate(target, qtype)

    places = itertools.product(range(experts), range(0, rows, step))
    if threads == 1:  # in the caller's thread, which may be one of many
        for place in places:
            work(place)
    else:
        with ThreadPoolExecutor(threads) as pool:  # ctypes calls release the GIL
            for _ in pool.map(work, places):
                pass
    return raw.reshape(*values.shape[:-1], raw.shape[-1])


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of the rows of a matrix, about CHUNK_BYTES of float32 values each."""
    step = max(1, CHUNK_BYTES // (4 * columns))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def dequantize(data: npt.NDArray[np.uint8], qtype: GGMLQuantizationType) -> npt.NDArray[np.float32]:
    """The float32 values (rows, columns) of `data` (rows, bytes per row), in the caller's thread."""
    import gguf

    if qtype.name in UNQUANTIZED:
        values: npt.NDArray[np.float32] = gguf.dequantize(data, qtype)
        return values
    block, block_bytes = gguf.GGML_QUANT_SIZES[qtype]
    source = np.require(data, np.uint8, ("C", "A"))
    values = np.empty((len(data), data.shape[1] // block_bytes * block), np.float32)
    name = qtype.name.lower().replace("_k", "_K")
    kernel = getattr(_library(), f"dequantize_row_{name}")
    kernel.argtypes, kernel.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
    kernel(source.ctypes.data, values.ctypes.data, values.size)
    return values


def digest(blocks: Iterable[npt.NDArray[np.uint8]]) -> str:
    """BLAKE2b of a tensor's bytes, 16 bytes in hexadecimal; `blocks`: its rows in order."""
    hashed = hashlib.blake2b(digest_size=16)
    for block in blocks:
        hashed.update(np.ascontiguousarray(block).data)
    return hashed.hexdigest()


def validate(data: npt.NDArray[np.uint8], qtype: GGMLQuantizationType) -> None:
    """ValueError where ggml finds a number in these bytes that is not finite."""
    if not _library().ggml_validate_row_data(qtype, data.ctypes.data, data.nbytes):
        raise ValueError(f"a value is too large for {qtype.name}")


@functools.cache
def _library() -> ctypes.CDLL:
    spec = importlib.util.find_spec("llama_cpp")
    folders = [Path(folder, "lib") for folder in (spec and spec.submodule_search_locations) or ()]
    paths = [folder / name for folder in folders for name in _LIBRARY]
    hint = "pip install --force-reinstall llama-cpp-python"
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise EdgeftError("the package llama_cpp does not carry libggml-base", hint)
    try:
        ggml = ctypes.CDLL(str(path))
    except OSError as error:
        raise EdgeftError(f"cannot load {path}: {error}", hint) from None
    enum, pointer, count = ctypes.c_int, ctypes.c_void_p, ctypes.c_int64
    ggml.ggml_quantize_chunk.argtypes = [enum, pointer, pointer, count, count, count, pointer]
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_quantize_requires_imatrix.argtypes = [enum]
    ggml.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    ggml.ggml_validate_row_data.argtypes = [enum, pointer, ctypes.c_size_t]
    ggml.ggml_validate_row_data.restype = ctypes.c_bool
    return ggml
