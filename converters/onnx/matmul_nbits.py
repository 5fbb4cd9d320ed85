"""Codes -> arrays in the layout of ONNX Runtime's operators on codes, and back.

    blobs, scales, zeros = pack(codes, block=32)        # zeros None: all 2 ** (bits - 1)
    codes = unpack(blobs, scales, zeros, bits=4)

The operators are MatMulNBits, GatherBlockQuantized and QMoE. A weight is scale * (code - zero). A
row is cut into blocks of 2^n columns, each with a scale in float32 and, where the blocks are not
symmetric, a zero. Codes are packed into bytes, least significant bits first.
https://github.com/microsoft/onnxruntime/blob/v1.22.0/docs/ContribOperators.md#com.microsoft.MatMulNBits
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft.weights.gptq_layout import Codes

BLOCK_SIZES = (256, 128, 64, 32, 16)
"""columns that may share a scale"""


def largest_block(groups: npt.NDArray[np.int32]) -> int | None:
    """The largest block size whose blocks are each in one group; None where there is none.

    `groups`: the group of each column.
    """
    for block in BLOCK_SIZES:
        if not len(groups) % block and (groups.reshape(-1, block) == groups[::block, None]).all():
            return block
    return None


def pack(
    codes: Codes, block: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], npt.NDArray[np.uint8] | None]:
    """(rows, blocks, bytes of a block), (rows, blocks), and zeros (rows, bytes) or None."""
    rows = len(codes.codes)
    bits = stored_bits(codes.bits)
    groups = codes.groups[::block]
    blobs = _bytes(codes.codes, bits).reshape(rows, len(groups), block * bits // 8)
    scales = codes.scales.astype(np.float32)[:, groups]
    zeros = codes.zeros[:, groups]
    if (zeros == 2 ** (bits - 1)).all():
        return blobs, scales, None
    odd = -len(groups) % (8 // bits)
    return blobs, scales, _bytes(np.pad(zeros, ((0, 0), (0, odd))), bits)


def unpack(
    blobs: npt.NDArray[np.uint8],
    scales: npt.NDArray[np.float32],
    zeros: npt.NDArray[np.uint8] | None,
    bits: int,
) -> Codes:
    """The codes of `pack`'s arrays, (rows, padded columns)."""
    rows, blocks = scales.shape
    codes = _fields(blobs.reshape(rows, -1), bits)
    if zeros is None:
        middle = np.full(scales.shape, 2 ** (bits - 1), np.uint8)
    else:
        middle = _fields(zeros.reshape(rows, -1), bits)[:, :blocks]
    groups = np.arange(codes.shape[1], dtype=np.int32) // (codes.shape[1] // blocks)
    return Codes(codes, scales, middle, groups, bits)


def pack_experts(
    codes: Codes, shape: tuple[int, int, int], block: int, bits: int
) -> dict[str, npt.NDArray[Any]]:
    """ "codes", "scales" and, where they are needed, "zeros" of QMoE, (experts, rows, …).

    `codes` are of the rows of all experts, `shape` is (experts, rows, columns). All experts' codes
    get the same `bits` and `block`, which may be more bits and a smaller block than they have.
    """
    experts, rows, columns = shape
    end = -(-columns // block) * block
    fitted = Codes(codes.codes[:, :end], codes.scales, codes.zeros, codes.groups[:end], bits)
    named = zip(("codes", "scales", "zeros"), pack(fitted, block), strict=True)
    arrays = {name: a.reshape(experts, rows, -1) for name, a in named if a is not None}
    # QMoE wants the last block without its padding; MatMulNBits wants it whole.
    arrays["codes"] = arrays["codes"][..., : -(-columns * bits // 8)]
    return arrays


def stored_bits(bits: int) -> int:
    """Bits that a code takes in the file."""
    return 4 if bits == 3 else bits


def _bytes(codes: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """(rows, n) -> (rows, n * bits / 8)."""
    if bits == 8:
        return codes
    per_byte = 8 // bits
    parts = codes.reshape(len(codes), -1, per_byte)
    packed: npt.NDArray[np.uint8] = parts[:, :, 0].copy()
    for i in range(1, per_byte):
        packed |= parts[:, :, i] << np.uint8(i * bits)
    return packed


def _fields(packed: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """(rows, n * bits / 8) -> (rows, n)."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    fields: npt.NDArray[np.uint8] = packed[..., None] >> shifts & np.uint8(2**bits - 1)
    return fields.reshape(len(packed), -1)
