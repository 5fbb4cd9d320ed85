"""A GGUF file -> its metadata, and the place of each tensor.

    header = read(Path("model.gguf"))
    header.meta["general.architecture"]             # 'llama'; arrays are lists
    tensor = header.tensors["output_norm.weight"]   # tensor.shape: (64,)
    data(header, tensor)                            # its bytes, mapped from the file

gguf.GGUFReader makes an array of every number and text, which takes seconds and hundreds of megabytes
for a large vocabulary. This module takes a fraction of a second. Files come from anywhere, so every
number is compared with the file's size before it is used.
The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgeft.errors import InputError

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

MAGIC = int.from_bytes(b"GGUF", "little")
VERSIONS = (2, 3)
"""version 1 counts in 32 bits; llama.cpp does not read it either"""

MAX_HEADER_BYTES = 128_000_000
"""ten times the largest vocabulary's header; a text takes up to four times its bytes"""
MAX_ARRAY_VALUES = 4_000_000
"""values of all arrays together; the largest vocabularies have 1.5 million"""
MAX_KEYS = 10_000
MAX_TENSORS = 100_000

PADDING_KEY = "edgeft.score.padding_token_id"
"""key of a reward model: transformers reads a score at the last token that is not this one"""
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q",
            12: "d"}  # fmt: skip
_TEXT, _ARRAY = 8, 9
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class Tensor:
    """Where a tensor is stored."""

    name: str
    shape: tuple[int, ...]
    """(…, rows, columns)"""
    type: GGMLQuantizationType
    offset: int
    """bytes from the start of the file"""
    row_bytes: int

    @property
    def count(self) -> int:
        """weights"""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """bytes"""
        return math.prod(self.shape[:-1]) * self.row_bytes


@dataclass(frozen=True)
class Header:
    """A GGUF file without its weights."""

    path: Path
    meta: dict[str, Any]
    """key -> value; arrays are lists"""
    tensors: dict[str, Tensor]


def read(path: Path, errors: str = "strict") -> Header:
    """InputError for a file that is truncated, of another format or hostile.

    `errors`: what becomes of bytes that are no UTF-8, as in `bytes.decode`; llama.cpp takes them.
    """
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            return _header(path, _Cursor(content, errors))
    except struct.error:
        reason = "it ends within its header"
    except (ValueError, OSError) as error:
        reason = str(error)
    raise InputError(f"{path} is not a whole GGUF file: {reason}", "copy or download it again")


def data(header: Header, tensor: Tensor) -> npt.NDArray[np.uint8]:
    """The tensor's bytes (…, bytes per row), mapped from the file, for gguf.dequantize."""
    shape = (*tensor.shape[:-1], tensor.row_bytes)
    if not tensor.size:  # an empty map is an error
        return np.empty(shape, np.uint8)
    return np.memmap(header.path, np.uint8, "r", tensor.offset, shape)


TOO_LARGE = "its header is larger than that of any known model"


class _Cursor:
    """Reads values one after the other; struct.error or ValueError at the end of the file."""

    def __init__(self, content: mmap.mmap, errors: str) -> None:
        self.content, self.errors = content, errors
        self.at = 0
        self.array_values = 0
        """read so far"""

    def numbers(self, form: str, count: int = 1) -> tuple[Any, ...]:
        if count > len(self.content):  # no number is smaller than a byte
            raise struct.error
        numbers = struct.Struct(f"<{count}{form}")
        values = numbers.unpack_from(self.content, self.at)
        self.at += numbers.size
        return values

    def texts(self, count: int) -> list[str]:
        texts = []
        content, at, size = self.content, self.at, min(len(self.content), MAX_HEADER_BYTES)
        for _ in range(count):
            (length,) = _LENGTH.unpack_from(content, at)
            start, at = at + 8, at + 8 + length
            if at > size:
                raise struct.error if at > len(content) else ValueError(TOO_LARGE)
            texts.append(str(content[start:at], "utf-8", self.errors))
        self.at = at
        return texts

    def value(self) -> Any:
        (value_type,) = self.numbers("I")
        if value_type != _ARRAY:
            return self.values(value_type, 1)[0]
        value_type, count = *self.numbers("I"), *self.numbers("Q")
        if count > len(self.content):
            raise struct.error
        self.array_values += count
        if self.array_values > MAX_ARRAY_VALUES:
            raise ValueError(TOO_LARGE)
        return self.values(value_type, count)

    def values(self, value_type: int, count: int) -> list[Any]:
        if value_type == _TEXT:
            return self.texts(count)
        if value_type not in _SCALARS:
            raise ValueError(f"unknown type of value {value_type}")
        return list(self.numbers(_SCALARS[value_type], count))


def _header(path: Path, cursor: _Cursor) -> Header:
    if cursor.numbers("I")[0] != MAGIC:
        raise ValueError("it does not begin with GGUF")
    (version,) = cursor.numbers("I")
    if version not in VERSIONS:
        raise ValueError(f"unknown version {version}")
    tensor_count, meta_count = cursor.numbers("Q", 2)
    if max(tensor_count, meta_count) > len(cursor.content):
        raise struct.error
    if tensor_count > MAX_TENSORS or meta_count > MAX_KEYS:
        raise ValueError(TOO_LARGE)
    meta: dict[str, Any] = {}
    for _ in range(meta_count):
        key = cursor.texts(1)[0]
        if key in meta:
            raise ValueError(f"{_short(key)} comes twice")
        meta[key] = cursor.value()
    # name -> shape, type, offset from the start of the data
    places: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(tensor_count):
        name = cursor.texts(1)[0]
        if name in places:
            raise ValueError(f"{_short(name)} comes twice")
        (dimensions,) = cursor.numbers("I")
        if not 1 <= dimensions <= 4:
            raise ValueError(f"{_short(name)} has {dimensions} dimensions")
        shape = cursor.numbers("Q", dimensions)[::-1]
        places[name] = (shape, *cursor.numbers("I"), *cursor.numbers("Q"))
    alignment = meta.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise ValueError("general.alignment is no power of two")
    start, end = -(-cursor.at // alignment) * alignment, len(cursor.content)
    tensors = {name: _tensor(name, *rest, start, end) for name, rest in places.items()}
    return Header(path, meta, tensors)


def _tensor(
    name: str, shape: tuple[int, ...], qtype: int, offset: int, start: int, end: int
) -> Tensor:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    type_ = GGMLQuantizationType(qtype)
    block, block_bytes = GGML_QUANT_SIZES[type_]
    if shape[-1] % block:
        raise ValueError(f"{_short(name)} has {shape[-1]} columns, {type_.name} goes by {block}")
    tensor = Tensor(name, shape, type_, start + offset, shape[-1] // block * block_bytes)
    if tensor.offset + tensor.size > end:
        raise ValueError(f"it ends before the end of {_short(name)}")
    return tensor


def _short(name: str) -> str:
    return repr(name[:60])
