"""Matrices in the layout of ONNX Runtime's MatMulNBits and GatherBlockQuantized.

    codes = rounded(values, bits=4, block=32)               # packed.Codes
    blobs, scales, zeros = arrays(codes, block=32)      # zeros None: all 2 ** (bits - 1)

A weight is scale * (code - zero); a row is cut into blocks of 2^n columns, each with a scale in
float32 and, where the blocks are not symmetric, a zero. Codes lie least significant first in bytes.
https://github.com/microsoft/onnxruntime/blob/v1.22.0/docs/ContribOperators.md#com.microsoft.MatMulNBits
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgeft.weights import gptq_layout
from edgeft.weights.checkpoint import Array

BLOCKS = (256, 128, 64, 32, 16)
"""columns that may share a scale"""
ROWS = 1 << 22
"""values that are rounded at a time"""


def rounded(values: Array, bits: int, block: int) -> gptq_layout.Codes:
    """(rows, columns) on the nearest grid with zero in the middle; the columns are filled up to whole
    blocks.

    A block reaches to its largest weight, as in ggml's Q4_0. Scales with a smaller square error, which
    cut that weight off, and asymmetric ones kept less of a fine-tune (benchmarks/LOG.md).
    """
    import torch

    rows, columns = values.shape
    blocks, half = -(-columns // block), 2 ** (bits - 1)
    codes = np.empty((rows, blocks * block), np.uint8)
    scales = np.empty((rows, blocks), np.float32)
    step = max(1, ROWS // columns)
    for start in range(0, rows, step):
        some = slice(start, start + step)
        x = torch.from_numpy(np.require(values[some], requirements="W"))
        x = torch.nn.functional.pad(x, (0, codes.shape[1] - columns)).view(-1, block)
        scale = x.gather(1, x.abs().argmax(1, keepdim=True)) / -half
        inverse = torch.where(scale == 0, 0, 1 / scale)
        found = (x * inverse).round_().clamp_(-half, half - 1).add_(half).to(torch.uint8)
        codes[some], scales[some] = found.view(-1, codes.shape[1]), scale.view(-1, blocks)
    groups = np.arange(codes.shape[1], dtype=np.int32) // block
    return gptq_layout.Codes(codes, scales, np.full(scales.shape, half, np.uint8), groups, bits)


def block_of(groups: npt.NDArray[np.int32]) -> int | None:
    """The largest block that holds columns of one group only; None where there is none."""
    for block in BLOCKS:
        if not len(groups) % block and (groups.reshape(-1, block) == groups[::block, None]).all():
            return block
    return None


def cut(codes: gptq_layout.Codes, columns: int, block: int, bits: int) -> gptq_layout.Codes:
    """The same values as codes of `bits` or more, filled up to whole ones of a smaller block."""
    end = -(-columns // block) * block
    return gptq_layout.Codes(
        codes.codes[:, :end], codes.scales, codes.zeros, codes.groups[:end], bits
    )


def arrays(
    codes: gptq_layout.Codes, block: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], npt.NDArray[np.uint8] | None]:
    """(rows, blocks, bytes of a block), (rows, blocks), and zeros (rows, bytes) or None."""
    rows = len(codes.codes)
    bits = width(codes.bits)
    used = codes.groups[::block]
    blobs = _bytes(codes.codes, bits).reshape(rows, len(used), block * bits // 8)
    scales = codes.scales.astype(np.float32)[:, used]
    zeros = codes.zeros[:, used]
    if (zeros == 2 ** (bits - 1)).all():
        return blobs, scales, None
    odd = -len(used) % (8 // bits)
    return blobs, scales, _bytes(np.pad(zeros, ((0, 0), (0, odd))), bits)


def width(bits: int) -> int:
    """Bits that a code takes."""
    return 4 if bits == 3 else bits


def _bytes(fields: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """(rows, n) -> (rows, n * bits / 8)."""
    if bits == 8:
        return fields
    span = 8 // bits
    parts = fields.reshape(len(fields), -1, span)
    packed_: npt.NDArray[np.uint8] = parts[:, :, 0].copy()
    for i in range(1, span):
        packed_ |= parts[:, :, i] << np.uint8(i * bits)
    return packed_
