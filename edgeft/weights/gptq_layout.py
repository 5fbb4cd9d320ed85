"""Codes of a linear layer -> the four tensors of AutoGPTQ (v1) or GPTQModel (v2), and back.

    arrays = pack(codes)                            # qweight, qzeros, scales, g_idx: four tensors
    unpack(arrays, slice(0, 256)).values()          # rows of the layer, float32
    quantization_config(bits=4, group_size=128)     # the entry in config.json

A weight is scale * (code - zero); scale and zero belong to its row and to the group of its column.
Codes are a stream of bits, least significant first, in words of 32 bits. In qweight a word holds
neighbouring columns of one row, in qzeros neighbouring rows of one group. Codes of 3 bits cross the
borders of words: 32 codes are 3 words. v1 stores zero - 1. AutoGPTQ's code:
https://github.com/AutoGPTQ/AutoGPTQ/blob/9f7d37072917ab3a7545835f23e808294a542153/auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py#L110-L200
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft.errors import InputError

Rows = slice | npt.NDArray[np.intp]

BITS = (2, 3, 4, 8)
PARTS = ("qweight", "qzeros", "scales", "g_idx")
"""names of a layer's tensors"""
OFFSETS = {"gptq": 1, "gptq_v2": 0}
"""checkpoint_format -> number that is subtracted from a zero before it is stored"""


@dataclass(frozen=True)
class Codes:
    """One linear layer, or some of its rows."""

    codes: npt.NDArray[np.uint8]
    """(rows, columns)"""
    scales: npt.NDArray[np.floating[Any]]
    """(rows, groups), float16, or float32 where a file stores another type; may be negative"""
    zeros: npt.NDArray[np.uint8]
    """(rows, groups); 2 ** (bits - 1) where the layer is symmetric"""
    groups: npt.NDArray[np.int32]
    """(columns,): each column's group"""
    bits: int

    def values(self) -> npt.NDArray[np.float32]:
        """scale * (code - zero), (rows, columns); exact in float32 for float16 scales."""
        scales = self.scales.astype(np.float32).take(self.groups, axis=1)
        steps = self.codes.astype(np.float32) - self.zeros.take(self.groups, axis=1)
        return scales * steps

    def take(self, rows: Rows) -> Codes:
        """Some of the rows."""
        return Codes(self.codes[rows], self.scales[rows], self.zeros[rows], self.groups, self.bits)


@dataclass(frozen=True)
class Settings:
    """Settings of a model that its layers are read with."""

    bits: int
    offset: int
    """was subtracted from the zeros"""
    mixed: bool
    """single layers may have other bits (GPTQModel's `dynamic`)"""


def pack(codes: Codes, offset: int = 1) -> dict[str, npt.NDArray[Any]]:
    """A whole layer as four tensors: of v1, or with `offset` 0 of v2.

    ValueError for codes that the layout cannot hold. In v1 that includes a zero of 0: it would be
    stored as -1, which readers do not agree on.
    """
    bits, top = codes.bits, 2**codes.bits - 1
    rows, columns = codes.codes.shape
    span = whole_words(bits)
    if rows % span or columns % span:
        raise ValueError(
            f"{bits} bits need multiples of {span}, not {rows} rows x {columns} columns"
        )
    if codes.scales.shape != codes.zeros.shape or codes.groups.shape != (columns,):
        raise ValueError("scales, zeros and groups do not fit together")
    if codes.scales.dtype != np.float16 or not np.isfinite(codes.scales).all():
        raise ValueError("scales must be finite float16 numbers")
    if codes.codes.max() > top:
        raise ValueError(f"a code is more than {top}")
    if codes.zeros.min() < offset or codes.zeros.max() > top:
        raise ValueError(f"a zero is not between {offset} and {top}")
    if codes.groups.min() < 0 or codes.groups.max() >= codes.scales.shape[1]:
        raise ValueError("a column is in a group that does not exist")
    stored = _to_words(codes.zeros - np.uint8(offset), bits)
    return {
        "qweight": _to_words(codes.codes.T, bits).view(np.int32),
        "qzeros": np.ascontiguousarray(stored.T).view(np.int32),
        "scales": np.ascontiguousarray(codes.scales.T),
        "g_idx": codes.groups.astype(np.int32),
    }


def unpack(
    arrays: Mapping[str, npt.NDArray[Any]], rows: Rows = slice(None), offset: int = 1
) -> Codes:
    """Some rows of a layer; of mapped arrays only the needed parts are read.

    A zero that is stored as -1 becomes 0, as in AutoGPTQ's exllama kernel and in GPTQModel:
    https://github.com/ModelCloud/GPTQModel/blob/f4c327a17eb3e24524d5a97a3d682e3696ae6a28/gptqmodel/utils/model_dequant.py#L900-L907
    """
    _, _, bits = check_shapes({name: array.shape for name, array in arrays.items()})
    scales = np.ascontiguousarray(arrays["scales"][:, rows].T)
    return Codes(
        codes=np.ascontiguousarray(_from_words(_words(arrays["qweight"][:, rows]), bits).T),
        scales=scales if scales.dtype == np.float16 else scales.astype(np.float32),
        zeros=zeros(arrays, rows, offset),
        groups=np.asarray(arrays["g_idx"], np.int32),
        bits=bits,
    )


def zeros(
    arrays: Mapping[str, npt.NDArray[Any]], rows: Rows = slice(None), offset: int = 1
) -> npt.NDArray[np.uint8]:
    """The zeros that `unpack` returns, (rows, groups), without reading the codes."""
    count, _, bits = check_shapes({name: array.shape for name, array in arrays.items()})
    numbers, span = np.arange(count)[rows], whole_words(bits)
    used, which = np.unique(numbers // span, return_inverse=True)
    words = span * bits // 32
    columns = (used[:, None] * words + np.arange(words)).reshape(-1)
    stored = _from_words(_words(arrays["qzeros"][:, columns].T), bits)
    shifted: npt.NDArray[np.uint8] = stored[which * span + numbers % span] + np.uint8(offset)
    return shifted & np.uint8(2**bits - 1)


def check_shapes(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int, int]:
    """(rows, columns, bits) of a layer; ValueError where the shapes do not belong together."""
    try:
        (words, width), (groups, rows), (columns,) = (
            shapes[name] for name in ("qweight", "scales", "g_idx")
        )
        bits, rest = divmod(32 * words, columns)
        fits = not rest and bits in BITS and width == rows
        fits = fits and not rows % whole_words(bits) and not columns % whole_words(bits)
        if not fits or shapes["qzeros"] != (groups, rows * bits // 32):
            raise ValueError
    except (ValueError, ZeroDivisionError):
        listed = ", ".join(f"{name} {tuple(shapes[name])}" for name in PARTS)
        raise ValueError(f"its tensors do not fit together: {listed}") from None
    return rows, columns, bits


def quantization_config(
    bits: int, group_size: int, sym: bool = True, desc_act: bool = False, **more: Any
) -> dict[str, Any]:
    """`quantization_config` of config.json, which is also the content of quantize_config.json."""
    config = {
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "bits": bits,
        "group_size": group_size,
        "sym": sym,
        "desc_act": desc_act,
        "lm_head": False,
        "pack_dtype": "int32",
    }
    return config | more


def layout(
    shape: tuple[int, ...], bits: int, group_size: int
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name of each tensor of a layer (rows, columns) -> its type in safetensors and its shape."""
    rows, columns = shape
    groups = 1 if group_size == -1 else columns // group_size
    return {
        "qweight": ("I32", (columns * bits // 32, rows)),
        "qzeros": ("I32", (groups, rows * bits // 32)),
        "scales": ("F16", (groups, rows)),
        "g_idx": ("I32", (columns,)),
    }


def settings(config: Mapping[str, Any], where: Path) -> Settings:
    """The settings in a `quantization_config`; InputError, which names `where`, for unreadable ones."""
    layout = str(config.get("checkpoint_format") or config.get("format") or "gptq").lower()
    if config.get("is_marlin_format"):
        layout = "marlin"
    if layout not in OFFSETS:
        raise InputError(
            f"{where}: the checkpoint format {layout!r} cannot be read",
            f"{' and '.join(OFFSETS)} can; others are made for one kind of GPU",
        )
    bits, words = config.get("bits"), config.get("pack_dtype", "int32")
    if bits not in BITS or words != "int32":
        raise InputError(
            f"{where}: codes of {bits} bits in {words}", f"{BITS} bits in int32 can be read"
        )
    return Settings(bits, OFFSETS[layout], bool(config.get("dynamic")))


def whole_words(bits: int) -> int:
    """Smallest number of `bits`-wide codes that fills whole 32-bit words."""
    if bits not in BITS:
        raise ValueError(f"{bits} bits are none of {BITS}")
    return 32 // math.gcd(32, bits)


def _words(stored: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    return np.ascontiguousarray(stored, np.int32).view(np.uint32)


def _to_words(fields: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint32]:
    """(count, n) -> (count * bits / 32, n)."""
    span, (count, width) = whole_words(bits), fields.shape
    blocks = fields.reshape(count // span, span, width)
    words = np.zeros((len(blocks), span * bits // 32, width), np.uint32)
    for i in range(span):
        word, shift = divmod(i * bits, 32)
        field = blocks[:, i].astype(np.uint32)
        words[:, word] |= field << np.uint32(shift)
        if shift + bits > 32:
            words[:, word + 1] |= field >> np.uint32(32 - shift)
    return words.reshape(count * bits // 32, width)


def _from_words(words: npt.NDArray[np.uint32], bits: int) -> npt.NDArray[np.uint8]:
    """(count * bits / 32, n) -> (count, n)."""
    span, (count, width) = whole_words(bits), words.shape
    per_span = span * bits // 32
    blocks = words.reshape(count // per_span, per_span, width)
    fields = np.empty((len(blocks), span, width), np.uint8)
    for i in range(span):
        word, shift = divmod(i * bits, 32)
        field = blocks[:, word] >> np.uint32(shift)
        if shift + bits > 32:
            field |= blocks[:, word + 1] << np.uint32(32 - shift)
        fields[:, i] = field & np.uint32(2**bits - 1)
    return fields.reshape(len(blocks) * span, width)
