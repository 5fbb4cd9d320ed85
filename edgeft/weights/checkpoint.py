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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgeft.errors import InputError
from edgeft.files import is_file, read_text
from edgeft.weights import gptq_layout, quantized_formats
from edgeft.weights.dtypes import (
    FLOAT8_DTYPES,
    FLOAT_DTYPES,
    STORED_DTYPES,
    Array,
    Rows,
    as_rows,
    from_float32,
    stored_as,
    to_float32,
)
from edgeft.weights.pickled import is_pickled, read_pickled
from edgeft.weights.quantized_layer import ACTIVATION_PARTS, LAYER_TYPES, Layer, Tensors

__all__ = [
    "GPTQ", "READABLE", "Array", "Checkpoint", "Rows", "Spec", "TensorInfo", "as_rows", "from_float32",
    "quantization", "stored_as", "to_float32", "write_safetensors",
]  # fmt: skip

MAX_HEADER_BYTES = 25_000_000
"""a quarter of the reference implementation's, which is for 200,000 tensors; parsed, it takes 25 times
its bytes"""
MAX_DIMENSIONS = 64
"""as in numpy"""
MAX_VALUES = 1 << 60
"""of a tensor, and of the shape of an empty one without its zeros"""
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1,
               "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "U32": 4, "U64": 8}  # fmt: skip

GPTQ = "GPTQ"
"""type of a layer that is stored in four tensors"""
READABLE = (*FLOAT_DTYPES, *FLOAT8_DTYPES, *LAYER_TYPES)
"""types that are read as float32"""
_BIN, _SAFETENSORS = "pytorch_model.bin", "model.safetensors"
_UNREAD_FILES = {
    "consolidated*.safetensors": "it is in Mistral's own format: take the folder with model.safetensors "
    "of the same repository, or convert it with transformers' convert_mistral_weights_to_hf.py",
    "consolidated*.pth": "it is in Meta's own format: python -m "
    "transformers.models.llama.convert_llama_weights_to_hf --input_dir … --output_dir … converts it",
    "*.gguf": "give the .gguf file itself as --base",
    "tf_model*.h5": "AutoModelForCausalLM.from_pretrained(…, from_tf=True) of transformers 4 converts it",
    "flax_model*.msgpack": "AutoModelForCausalLM.from_pretrained(…, from_flax=True) of transformers 4 "
    "converts it",
    "*.onnx": "take the repository that it was exported from",
    "*.ckpt": "save the model with save_pretrained() of transformers",
    "*.distcp": "torch.distributed.checkpoint.format_utils.dcp_to_torch_save merges it",
    "zero_to_fp32.py": "its shards are DeepSpeed's: python zero_to_fp32.py FOLDER OUT merges them",
    "pytorch_model_fsdp_*": "its shards are FSDP's: accelerate merge-weights FOLDER OUT merges them",
    "*.pt": "save the model with save_pretrained() of transformers",
    "*.bin": "a file of torch.save is read under the name pytorch_model.bin",
}  # fmt: skip
"""weights in other formats -> what to do"""


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor is stored."""

    file: Path
    dtype: str
    """safetensors' name: F32, F16, BF16, …; or one of LAYER_TYPES"""
    shape: tuple[int, ...]
    offset: int
    """bytes from the start of the file"""
    strides: tuple[int, ...] = ()
    """values from one index to the next, for each dimension; () = in C order"""

    def check_float(self, name: str) -> None:
        """InputError for a type without float values."""
        if self.dtype not in READABLE:
            raise InputError(
                f"{self.file}: tensor {name} is stored as {self.dtype}",
                "an unquantized checkpoint (F32, F16 or BF16) is needed, or one of GPTQ, "
                + ", ".join(quantized_formats.READERS),
            )


class Spec(NamedTuple):
    """A tensor to write."""

    name: str
    dtype: str
    """F32, F16, BF16 or I32"""
    shape: tuple[int, ...]


class Checkpoint:
    """The tensors of a Hugging Face folder (or one file of safetensors or torch.save), mapped."""

    def __init__(self, source: Path) -> None:
        self.tensors: dict[str, TensorInfo] = {}
        for file in _files(source):
            for name, info in _header(file).items():
                if name in self.tensors:
                    raise InputError(f"{file}: tensor {name} is in two files")
                self.tensors[name] = info
        self._layers: dict[str, dict[str, TensorInfo]] = {}
        self._quantized: dict[str, Layer] = {}
        self.offset = 0
        """was subtracted from the zeros of its GPTQ layers before they were stored"""
        self.quantization = quantized_formats.quantization_config(source)
        """how its weights are quantized, with `quant_method`; {} where they are not"""
        method = self.quantization.get("quant_method")
        if method == GPTQ.lower():
            self._gather(gptq_layout.settings(self.quantization, source))
        elif method in quantized_formats.READERS:
            stored = Tensors(dict(self.tensors), partial(_stored, dict(self.tensors)))
            self._join(quantized_formats.read_layers(self.quantization, stored, source))

    def read(self, name: str) -> Array:
        """A tensor as float32 (exact for F32, F16 and BF16)."""
        return self.rows(name, slice(None)).reshape(self.tensors[name].shape)

    def rows(self, name: str, rows: Rows) -> Array:
        """Some rows of a tensor as float32; only they come into memory."""
        if name in self._quantized:
            return self._quantized[name].rows(rows)
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

    def rename(self, stored: Mapping[str, str]) -> None:
        """Give tensors other names and leave others out; `stored`: new name -> name until now."""
        self.tensors = {new: self.tensors[old] for new, old in stored.items()}
        for layers in (self._layers, self._quantized):
            named = {new: layers[old] for new, old in stored.items() if old in layers}
            layers.clear()
            layers.update(named)  # type: ignore[arg-type]

    def _join(self, layers: dict[str, Layer]) -> None:
        """Replace the tensors of each quantized layer by one, in the place of its first."""
        owners = {part: weight for weight, layer in layers.items() for part in layer.parts}
        self._quantized, stored, self.tensors = layers, self.tensors, {}
        for name, info in stored.items():
            weight = owners.get(name, name)
            if weight in layers:
                layer = layers[weight]
                joined = TensorInfo(info.file, layer.dtype, layer.shape, info.offset)
                self.tensors.setdefault(weight, joined)
            elif name.rpartition(".")[2] not in ACTIVATION_PARTS:
                self.tensors[name] = info

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
    """The GPTQ settings of a model folder; {} for a model that is not quantized by GPTQ."""
    config = quantized_formats.quantization_config(folder)
    return config if config.get("quant_method") == GPTQ.lower() else {}


def _stored(tensors: Mapping[str, TensorInfo], name: str) -> npt.NDArray[Any]:
    return _mapped(tensors[name])


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
    if set(dtypes.values()) != {"I32"} or scales not in FLOAT_DTYPES:
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
    shape, dtype = as_rows(info.shape), STORED_DTYPES[info.dtype]
    if math.prod(shape) == 0:
        return np.zeros(shape, dtype)
    if not info.strides:
        return np.memmap(info.file, dtype, "r", info.offset, shape)
    span = 1 + sum((n - 1) * stride for n, stride in zip(info.shape, info.strides, strict=True))
    flat = np.memmap(info.file, dtype, "r", info.offset, (span,))
    strides = [flat.itemsize * stride for stride in info.strides]
    return np.lib.stride_tricks.as_strided(flat, info.shape, strides).reshape(shape)


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
    """The files with a folder's weights; safetensors go before files of torch.save."""
    if source.is_file():
        return [source]
    if (source / _SAFETENSORS).is_file():
        return [source / _SAFETENSORS]
    if named := sorted(source.glob("gptq_model-*bit-*g.safetensors")):
        return named[:1]  # AutoGPTQ's name; other files may hold the model in other group sizes
    for single in (_SAFETENSORS, _BIN):
        if (source / single).is_file():
            return [source / single]
        if (source / f"{single}.index.json").is_file():
            return _indexed(source, source / f"{single}.index.json")
        if shards := _unindexed(source, single):
            return shards
    raise InputError(f"no {_SAFETENSORS} in {source}", other_weights(source))


def _indexed(source: Path, index: Path) -> list[Path]:
    """The shards that an index names."""
    try:
        names = sorted(set(json.loads(read_text(index))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(f"{index} is not a safetensors index: {error!r}") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise InputError(f"{index} names a file outside its folder: {name!r}")
        if not is_file(source / name):
            raise InputError(f"{source} lacks the shard {name[:100]}", "download the model again")
    return [source / name for name in names]


def _unindexed(source: Path, single: str) -> list[Path]:
    """Shards NAME-00001-of-00002 beside which no index lies; InputError where one is missing."""
    stem, _, suffix = single.rpartition(".")
    shards = sorted(source.glob(f"{stem}-*-of-*.{suffix}"))
    counts = {shard.stem.rpartition("-")[2] for shard in shards}
    if shards and (len(counts) > 1 or counts != {f"{len(shards):05}"}):
        raise InputError(
            f"{source} has {len(shards)} of the {' or '.join(sorted(counts))} shards of its weights",
            "download the model again",
        )
    return shards


def other_weights(source: Path, otherwise: str = "a Hugging Face model folder is needed") -> str:
    """What to do with a folder whose weights are in none of the formats that are read."""
    remedies = (hint for pattern, hint in _UNREAD_FILES.items() if any(source.glob(pattern)))
    return next(remedies, otherwise)


def _header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of a file; of safetensors, as strictly as the reference implementation reads them.

    https://github.com/huggingface/safetensors/blob/v0.8.0/safetensors/src/tensor.rs
    """
    if is_pickled(file):
        return {name: TensorInfo(file, *tensor) for name, tensor in read_pickled(file).items()}
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
