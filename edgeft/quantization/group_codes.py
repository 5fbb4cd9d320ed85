"""float32 values -> symmetric codes in groups of columns, each rounded to the nearest.

codes = nearest_codes(values, bits=4, columns=32)                           # scales in float32, as in ONNX
codes = nearest_codes(values, bits=4, columns=64, scale_type=np.float16)    # as in a GPTQ folder

Each row is rounded by itself, so that blocks of rows give the same codes.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft.weights.gptq_layout import Codes

STEP_VALUES = 1 << 18
"""values that a thread rounds at a time: they fit into a core's cache"""


def nearest_codes(
    values: npt.NDArray[np.float32],
    bits: int,
    columns: int,
    scale_type: npt.DTypeLike = np.float32,
    threads: int = 1,
) -> Codes:
    """Round `values` (rows, width) to `bits`; `columns` of a group, whose last one is padded with zeros.

    `columns` -1: the whole row is a group. The scale of a group maps its largest weight to the first code,
    as in ggml's Q4_0. Scales with a smaller square error, which clip that weight, and asymmetric scales
    keep less of a fine-tune (benchmarks/studies/LOG.md). ValueError where a scale is not finite.
    """
    rows, width = values.shape
    columns = width if columns == -1 else columns
    groups, half = -(-width // columns), 2 ** (bits - 1)
    codes = np.empty((rows, groups * columns), np.uint8)
    scales = np.empty((rows, groups), scale_type)

    def work(start: int) -> None:
        span = slice(start, start + step)
        x = np.pad(values[span], ((0, 0), (0, groups * columns - width)))
        x = x.reshape(len(x), groups, columns)
        place = np.abs(x).argmax(-1)[..., None]
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            scales[span] = (np.take_along_axis(x, place, -1) / np.float32(-half))[..., 0]
            scale = scales[span].astype(np.float32)[..., None]
            x *= np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
            np.rint(x, out=x)
            np.clip(x, -half, half - 1, out=x)
            x += np.float32(half)
            codes[span] = x.astype(np.uint8).reshape(len(x), -1)

    step = max(1, STEP_VALUES // width)
    starts = range(0, rows, step)
    if threads == 1:  # in the caller's thread, which may be one of many
        for start in starts:
            work(start)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, starts))
    if not np.isfinite(scales).all():
        raise ValueError(f"a value is too large for a scale in {scales.dtype.name}")
    group_of: npt.NDArray[Any] = np.arange(codes.shape[1], dtype=np.int32) // columns
    return Codes(codes, scales, np.full(scales.shape, half, np.uint8), group_of, bits)
