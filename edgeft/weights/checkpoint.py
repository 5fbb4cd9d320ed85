"""A safetensors folder -> its tensors as float32 rows, and back, without torch.

    weights = Checkpoint(Path("model"))            # one file, or shards with an index
    weights.read("model.norm.weight")              # float32, whatever the file stores
    weights.rows("lm_head.weight", slice(0, 99))   # only these rows come into memory
    write_safetensors(path, specs, arrays)         # one tensor in memory at a time

The format: https://github.com/huggingface/safetensors#format. Headers are checked before use: a
hostile or truncated file is an InputError.

The four tensors of a linear layer that GPTQ quantized (`edgeft.weights.gptq_layout`) appear as one,
X.weight of the type "GPTQ". Its values are read like those of any other tensor:

    weights.codes("model.layers.0.mlp.up_proj.weight")      # gptq_layout.Codes; None elsewhere
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgeft.errors import InputError
from edgeft.files import is_file, read_json
from edgeft.weights import gptq_layout

MAX_HEADER_BYTES = 25_000_000
"""a quarter of the reference implementation's, which is for 200,000 tensors; parsed, it takes 25 times
its bytes"""
MAX_DIMENSIONS = 64
"""as in numpy"""
MAX_VALUES = 1 << 60
"""of a tensor, and of the shape of an empty one without its zeros"""
Array = npt.NDArray[np.float32]
Rows = slice | npt.NDArray[np.intp]
"""index of the rows of a tensor as (rows, columns), or of the elements of a vector"""

_READ_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_WRITE_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I32": "<i4"}
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1,
               "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}  # fmt: skip

GPTQ = "GPTQ"
"""type of a layer that is stored in four tensors"""
READABLE = (*_READ_DTYPES, GPTQ)
"""types that are read as float32"""


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor is stored."""

    file: Path
    dtype: str
    """safetensors' name: F32, F16, BF16, …; or GPTQ"""
    shape: tuple[int, ...]
    offset: int
    """bytes from the start of the file"""

    def check_float(self, name: str) -> None:
        """InputError for a type without float values."""
        if self.dtype not in READABLE:
            raise InputError(
                f"{self.file}: tensor {name} is stored as {self.dtype}",
                "an unquantized checkpoint (F32, F16 or BF16) is needed, or one of GPTQ",
            )


class Spec(NamedTuple):
    """A tensor to write."""

    name: str
    dtype: str
    """F32, F16, BF16 or I32"""
    shape: tuple[int, ...]


class Checkpoint:
    """The tensors of a Hugging Face folder (or one safetensors file), read on demand by mmap."""

    def __init__(self, source: Path) -> None:
        self.tensors: dict[str, TensorInfo] = {}
        for file in _files(source):
            for name, info in _header(file).items():
                if name in self.tensors:
                    raise InputError(f"{file}: tensor {name} is in two files")
                self.tensors[name] = info
        self._layers: dict[str, dict[str, TensorInfo]] = {}
        self.offset = 0
        """was subtracted from the zeros of its GPTQ layers before they were stored"""
        if config := quantization(source):
            self._gather(gptq_layout.settings(config, source))

    def read(self, name: str) -> Array:
        """A tensor as float32 (exact for F32, F16 and BF16)."""
        return self.rows(name, slice(None)).reshape(self.tensors[name].shape)

    def rows(self, name: str, rows: Rows) -> Array:
        """Some rows of a tensor as float32; only they come into memory."""
        if codes := self.codes(name, rows):
            return codes.values()
        return to_float32(self.raw(name)[rows], self.tensors[name].dtype)

    def codes(self, name: str, rows: Rows = slice(None)) -> gptq_layout.Codes | None:
        """Some rows of a layer that GPTQ quantized; None for any other tensor."""
        layer = self.layer(name)
        return gptq_layout.unpack(layer, rows, self.offset) if layer else None

    def layer(self, name: str) -> dict[str, npt.NDArray[Any]] | None:
        """The four arrays of a layer that GPTQ quantized, mapped; None for any other tensor."""
        layer = self._layers.get(name)
        if layer is None:
            return None
        arrays = {part: _mapped(info) for part, info in layer.items()}
        if layer["scales"].dtype == "BF16":
            arrays["scales"] = to_float32(arrays["scales"], "BF16")
        groups = arrays["g_idx"]
        if groups.min() < 0 or groups.max() >= len(arrays["scales"]):
            raise InputError(f"{layer['g_idx'].file}: g_idx of {name} names groups that it lacks")
        return arrays

    def padding(self, name: str) -> bool:
        """Whether a tensor is a bias of zeros, which AutoGPTQ before 0.5 added to every layer.

        https://github.com/AutoGPTQ/AutoGPTQ/blob/v0.4.2/auto_gptq/modeling/_utils.py#L86
        """
        layer, _, part = name.rpartition(".")
        return part == "bias" and f"{layer}.weight" in self._layers and not self.read(name).any()

    def raw(self, name: str) -> npt.NDArray[Any]:
        """A tensor in its stored type, (rows, columns), mapped; not for GPTQ. See `to_float32`."""
        info = self.tensors[name]
        info.check_float(name)
        return _mapped(info)

    def _gather(self, settings: gptq_layout.Settings) -> None:
        """Replace the four tensors of each GPTQ layer by one."""
        self.offset = settings.offset
        stored, self.tensors = self.tensors, {}
        for name, info in stored.items():
            layer, _, part = name.rpartition(".")
            if part == "qweight" and f"{layer}.weight" in stored:
                raise InputError(f"{info.file}: layer {layer} has both a weight and a qweight")
            if part == "qweight":
                parts = {part: stored.get(f"{layer}.{part}") for part in gptq_layout.PARTS}
                whole = {part: info for part, info in parts.items() if info}
                shape = _shape(info.file, layer, whole, settings)
                self.tensors[f"{layer}.weight"] = TensorInfo(info.file, GPTQ, shape, info.offset)
                self._layers[f"{layer}.weight"] = whole
            elif part not in gptq_layout.PARTS:
                self.tensors[name] = info
            elif f"{layer}.qweight" not in stored:
                raise InputError(f"{info.file}: layer {layer} has {part}, but no qweight")


def quantization(folder: Path) -> dict[str, Any]:
    """The GPTQ settings of a model folder; {} for a model that is not quantized by GPTQ.

    Early folders of AutoGPTQ have them in quantize_config.json only.
    """
    if not folder.is_dir():
        return {}
    config: Any = read_json(folder / "config.json").get("quantization_config")
    if config is None:
        return read_json(folder / "quantize_config.json")
    return config if isinstance(config, dict) and config.get("quant_method") == "gptq" else {}


def _shape(
    file: Path, layer: str, parts: dict[str, TensorInfo], settings: gptq_layout.Settings
) -> tuple[int, int]:
    """(rows, columns) of a layer; InputError where it is incomplete or contradicts config.json."""
    lacks = [part for part in gptq_layout.PARTS if part not in parts]
    if lacks:
        raise InputError(f"{file}: layer {layer} lacks {', '.join(lacks)}", "download it again")
    dtypes = {part: info.dtype for part, info in parts.items()}
    stored = ", ".join(f"{part} {dtype}" for part, dtype in dtypes.items())
    scales = dtypes.pop("scales")
    if set(dtypes.values()) != {"I32"} or scales not in _READ_DTYPES:
        raise InputError(f"{file}: layer {layer} is stored as {stored}", "I32 and F16 are read")
    try:
        rows, columns, bits = gptq_layout.check_shapes({p: info.shape for p, info in parts.items()})
    except ValueError as error:
        raise InputError(f"{file}: layer {layer}: {error}") from None
    if bits != settings.bits and not settings.mixed:
        raise InputError(
            f"{file}: layer {layer} has {bits} bits, config.json says {settings.bits}",
            "are both of the same model?",
        )
    return rows, columns


def _mapped(info: TensorInfo) -> npt.NDArray[Any]:
    """A map of a tensor in its file, (rows, columns)."""
    shape, dtype = as_rows(info.shape), (_READ_DTYPES | _WRITE_DTYPES)[info.dtype]
    if math.prod(shape) == 0:
        return np.zeros(shape, dtype)
    return np.memmap(info.file, dtype, "r", info.offset, shape)


def as_rows(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(…, columns) -> (rows, columns); a vector stays a vector."""
    return (math.prod(shape[:-1]), shape[-1]) if len(shape) > 1 else shape or (1,)


def to_float32(raw: npt.NDArray[Any], dtype: str) -> Array:
    """Stored values -> float32 (exact for F32, F16 and BF16)."""
    if dtype == "BF16":
        wide = raw.astype("<u4") << np.uint32(16)
        return wide.view(np.float32)
    return raw.astype(np.float32)


def from_float32(values: Array, dtype: str) -> npt.NDArray[Any]:
    """Round to nearest even. BF16 is returned as uint16 bits, integers unchanged."""
    if dtype == "BF16":
        bits = values.astype(np.float32, copy=False).view(np.uint32)
        bits = np.where(np.isnan(values), np.uint32(0x7FC00000), bits)  # rounding up would wrap it
        odd = (bits >> np.uint32(16)) & np.uint32(1)
        return ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype("<u2")
    return values.astype(_WRITE_DTYPES[dtype])


def stored_as(values: Array, dtype: str) -> Array:
    """`values` after they were stored as `dtype`, float32."""
    return to_float32(from_float32(values, dtype), dtype)


def write_safetensors(path: Path, specs: list[Spec], arrays: Iterable[Any]) -> None:
    """Write one safetensors file; `arrays` come in the order of `specs`.

    An array may be an iterable of blocks of rows, so that no tensor has to be in memory as a whole.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for spec in specs:
        size = math.prod(spec.shape) * _ITEM_BYTES[spec.dtype]
        header[spec.name] = {
            "dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [offset, offset + size]
        }  # fmt: skip
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for spec, values in zip(specs, arrays, strict=True):
            if isinstance(values, np.ndarray) and values.shape != spec.shape:
                raise ValueError(f"{spec.name}: {values.shape} announced as {spec.shape}")
            count = 0
            for block in [values] if isinstance(values, np.ndarray) else values:
                file.write(np.ascontiguousarray(from_float32(block, spec.dtype)).data)
                count += block.size
            if count != math.prod(spec.shape):
                raise ValueError(f"{spec.name}: {count} values announced as {spec.shape}")


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    single, index = source / "model.safetensors", source / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if named := sorted(source.glob("gptq_model-*bit-*g.safetensors")):
        return named[:1]  # AutoGPTQ's name; other files may hold the model in other group sizes
    if not index.is_file():
        pickled = any(source.glob("*.bin"))
        raise InputError(
            f"no model.safetensors in {source}",
            "convert the .bin weights to safetensors first; edgeft never unpickles"
            if pickled
            else "a Hugging Face model folder is needed",
        )
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(f"{index} is not a safetensors index: {error!r}") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise InputError(f"{index} names a file outside its folder: {name!r}")
        if not is_file(source / name):
            raise InputError(f"{source} lacks the shard {name[:100]}", "download the model again")
    return [source / name for name in names]


def _header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file, as strictly as the reference implementation reads them.

    https://github.com/huggingface/safetensors/blob/v0.8.0/safetensors/src/tensor.rs
    """
    total = file.stat().st_size
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if not 2 <= size <= min(MAX_HEADER_BYTES, total - 8):
            raise InputError(f"{file} is not a safetensors file (header of {size} bytes)")
        text = stream.read(size)
    start, end_of_data = 8 + size, 0
    tensors: dict[str, TensorInfo] = {}
    try:
        raw = _header_json(text)
        _check_metadata(raw.pop("__metadata__", None))
        # Tensors neither overlap nor leave a gap.
        for name, entry in sorted(raw.items(), key=lambda item: item[1]["data_offsets"]):
            shape, (begin, end) = _whole(entry["shape"]), _whole(entry["data_offsets"])
            dtype = entry["dtype"]
            size = math.prod(shape) * _ITEM_BYTES[dtype]
            if begin != end_of_data or end - begin != size:
                raise ValueError(f"tensor {name}: bytes {begin} to {end} for {dtype} {shape}")
            if math.prod(n or 1 for n in shape) > MAX_VALUES:
                raise ValueError(f"tensor {name} has the shape {shape}")
            end_of_data = end
            tensors[name] = TensorInfo(file, dtype, shape, start + begin)
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise InputError(f"{file} has a broken safetensors header: {error!r}"[:500]) from None
    if start + end_of_data > total:
        raise InputError(
            f"{file} is truncated: {total} of {start + end_of_data} bytes", "download it again"
        )
    if start + end_of_data < total:
        raise InputError(
            f"{file} has {total - start - end_of_data} bytes that belong to no tensor",
            "download it again",
        )
    return tensors


def _header_json(text: bytes) -> dict[str, Any]:
    """The header's JSON object: UTF-8 without a mark of its byte order, each key once."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) < len(pairs):
            raise ValueError("it names an entry twice")
        return entries

    header: dict[str, Any] = json.loads(str(text, "utf-8"), object_pairs_hook=unique)
    return header


def _check_metadata(entry: Any) -> None:
    texts = entry.values() if isinstance(entry, dict) else []
    if not (entry is None or isinstance(entry, dict)) or not all(type(t) is str for t in texts):
        raise TypeError("__metadata__ does not hold texts")


def _whole(numbers: Any) -> tuple[int, ...]:
    """A list of whole numbers from 0; not "4", true or 4.0."""
    if not isinstance(numbers, list) or len(numbers) > MAX_DIMENSIONS:
        raise TypeError(f"{numbers!r} are no whole numbers"[:100])
    if any(type(n) is not int or not 0 <= n < 1 << 64 for n in numbers):
        raise TypeError(f"{numbers!r} are no whole numbers"[:100])
    return tuple(numbers)
