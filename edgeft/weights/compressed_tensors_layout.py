"""Linear layers in the format of compressed-tensors (llm-compressor, vLLM) -> their rows in float32.

pack-quantized: X.weight_packed holds codes of 1 to 8 bits as a dense stream in words of 32 bits,
neighbouring columns first, each code + 2 ** (bits - 1). weight_shape is the shape.
int-quantized, float-quantized, naive-quantized: X.weight is I8 or F8_E4M3.
weight_scale is (1), (rows, 1), (rows, groups) or a grid of blocks; weight_zero_point has its shape,
packed along the rows where the weight is packed. A weight is scale * (code - zero), rounded to the
type of the scales.
https://github.com/neuralmagic/compressed-tensors/blob/0.12.2/src/compressed_tensors/quantization/lifecycle/forward.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft.errors import InputError
from edgeft.weights.dtypes import FLOAT8_DTYPES, Array, Rows, stored_as, to_float32
from edgeft.weights.fp8_layout import block_size
from edgeft.weights.quantized_layer import Layer, Tensors

FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision",
           "dense")  # fmt: skip
"""values of `format` that are read"""
WORD_BITS = 32


def layers(config: Mapping[str, Any], tensors: Tensors) -> dict[str, Layer]:
    """Name of a weight -> layer. InputError for another format or a damaged layer."""
    groups = [
        group for group in (config.get("config_groups") or {}).values() if isinstance(group, dict)
    ]
    formats = {
        config.get("format") or "dense",
        *(group.get("format") or "dense" for group in groups),
    }
    sparse = (config.get("sparsity_config") or {}).get("format", "dense")
    if others := sorted(formats - set(FORMATS)) or ([sparse] if sparse != "dense" else []):
        raise InputError(
            f"the compressed-tensors format {others[0]!r} cannot be read",
            f"take the unquantized model, or one in {', '.join(FORMATS[:-1])}",
        )
    settings = [group.get("weights") or {} for group in groups]
    weights = {}
    for name, info in tensors.stored.items():
        stem, _, part = name.rpartition(".")
        if part == "weight_packed":
            weights[f"{stem}.weight"] = _layer(stem, name, settings, tensors)
        elif part == "weight" and info.dtype in ("I8", *FLOAT8_DTYPES):
            weights[name] = _layer(stem, name, settings, tensors)
    return weights


def _layer(stem: str, codes_name: str, settings: list[dict[str, Any]], tensors: Tensors) -> Layer:
    packed = codes_name.endswith("_packed")
    parts = tuple(
        name for part in ("weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")
        if (name := f"{stem}.{part}") in tensors.stored
    )  # fmt: skip
    try:
        shape = tensors.raw(f"{stem}.weight_shape") if packed else tensors.stored[codes_name].shape
        height, width = (int(size) for size in shape)
        bits = _bits(tensors.stored[codes_name], width, settings) if packed else 8
        scales = tensors.grid(f"{stem}.weight_scale")
        zeros = _zeros(stem, scales.shape, height, bits, tensors)
        groups = _groups(stem, width, scales.shape[1], settings, tensors)
        block = block_size(height, scales.shape[0], _block(settings, 0))
        if not block:
            raise ValueError(f"scales {scales.shape} for {height} x {width}")
        if packed and tensors.stored[codes_name].shape[0] != height:
            raise ValueError(f"weight_shape is {height} x {width}")
    except (ValueError, KeyError, TypeError) as error:
        raise tensors.refusal(codes_name, f"is no layer of compressed-tensors: {error!r}") from None
    stored = tensors.stored[codes_name].dtype
    rounded = tensors.stored[f"{stem}.weight_scale"].dtype

    def rows(index: Rows) -> Array:
        raw = tensors.raw(codes_name)[index]
        codes = unpacked(raw, bits, width) if packed else to_float32(raw, stored)
        at = np.arange(height)[index] // block
        steps = codes if zeros is None else codes - zeros(at)[:, groups]
        return stored_as(steps * scales.rows(at)[:, groups], rounded)

    dtype = "FP8" if stored in FLOAT8_DTYPES else f"INT{bits}"
    return Layer(dtype, (height, width), (codes_name, *parts), rows)


def unpacked(words: npt.NDArray[Any], bits: int, width: int) -> Array:
    """(rows, words) -> signed codes, (rows, width)."""
    first = np.arange(width) * bits
    word, shift = first // WORD_BITS, (first % WORD_BITS).astype(np.uint64)
    padded = np.pad(np.ascontiguousarray(words).view(np.uint32), ((0, 0), (0, 1))).astype(np.uint64)
    double = padded[:, word] | (padded[:, word + 1] << np.uint64(WORD_BITS))
    codes = (double >> shift) & np.uint64(2**bits - 1)
    return codes.astype(np.float32) - np.float32(2 ** (bits - 1))


def _bits(codes: Any, width: int, settings: list[dict[str, Any]]) -> int:
    """Bits of a packed code; of several settings the one that fills the words."""
    words = codes.shape[1]
    if codes.dtype != "I32":
        raise ValueError(f"packed in {codes.dtype}")
    configured = [int(entry["num_bits"]) for entry in settings if entry.get("num_bits")]
    fitting = [bits for bits in configured or (4, 8) if -(-width * bits // WORD_BITS) == words]
    if not fitting or not 1 <= fitting[0] <= 8:
        raise ValueError(f"{words} words for {width} columns of {configured} bits")
    return fitting[0]


def _zeros(
    stem: str, shape: tuple[int, ...], height: int, bits: int, tensors: Tensors
) -> Callable[[npt.NDArray[np.intp]], Array] | None:
    """Rows of the zero points, which have the shape of the scales; None for a symmetric layer."""
    name = f"{stem}.weight_zero_point"
    if name not in tensors.stored:
        return None
    info = tensors.stored[name]
    if info.dtype == "I32" and f"{stem}.weight_packed" in tensors.stored:
        if info.shape != (-(-height * bits // WORD_BITS), shape[1]) or shape[0] != height:
            raise ValueError(f"zero points {info.shape} for scales {shape}")
        return lambda at: unpacked(tensors.raw(name).T, bits, height).T[at]
    grid = tensors.grid(name)
    if grid.shape != shape:
        raise ValueError(f"zero points {grid.shape} for scales {shape}")
    return grid.rows


def _groups(
    stem: str, width: int, count: int, settings: list[dict[str, Any]], tensors: Tensors
) -> npt.NDArray[np.intp]:
    """The scale of each column."""
    name = f"{stem}.weight_g_idx"
    if name in tensors.stored and (indices := tensors.raw(name).reshape(-1)).min() >= 0:
        if len(indices) != width or indices.max() >= count:
            raise ValueError(f"weight_g_idx is {indices.shape}")
        return np.asarray(indices, np.intp)
    size = block_size(width, count, _block(settings, 1))
    if not size:
        raise ValueError(f"{count} groups for {width} columns")
    return np.arange(width) // size


def _block(settings: list[dict[str, Any]], axis: int) -> int | None:
    """Rows (0) or columns (1) of a block, where the settings name one."""
    blocks = [entry["block_structure"] for entry in settings if entry.get("block_structure")]
    return int(blocks[0][axis]) if blocks and isinstance(blocks[0], list) else None
