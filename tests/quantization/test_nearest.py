"""The nearest values of given scales; the oracle tries every code of every block."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgeft.quantization import ggml
from edgeft.quantization.ggml_blocks import codes_of, grid_of, values, with_codes
from edgeft.quantization.nearest import IQ4_TABLE, has_scales, scales_of
from helpers.llama_quantize import gguf_type

EVEN = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")


def some_weights(seed: int) -> Any:
    weights = np.random.default_rng(seed).standard_normal((6, 512), np.float32)
    weights[1] = np.abs(weights[1])
    weights[2, :256] = 0
    return weights


def levels_of(data: Any, kind: str) -> Any:
    """(codes, rows, columns): the value of each code everywhere."""
    qtype = gguf_type(kind)
    if kind in EVEN:
        grid, codes = grid_of(data, qtype), codes_of(data, qtype)
        return np.stack([values(grid, np.full_like(codes, code)) for code in range(grid.levels)])
    size, start = {"IQ4_NL": (18, 2), "IQ4_XS": (136, 8)}[kind]
    levels = []
    for code in range(16):
        blocks = data.copy().reshape(len(data), -1, size)
        blocks[..., start:] = code | code << 4
        levels.append(ggml.dequantize(blocks.reshape(data.shape), qtype))
    return np.stack(levels)


@pytest.mark.parametrize("kind", [*EVEN, "IQ4_NL", "IQ4_XS"])
def test_each_weight_takes_the_nearest_value(kind: str) -> None:
    qtype = gguf_type(kind)
    data = ggml.quantize(some_weights(0), qtype, threads=1)
    if kind in EVEN:
        assert np.array_equal(with_codes(data, codes_of(data, qtype), qtype), data)
    levels, weights = levels_of(data, kind), some_weights(0) + 0.1 * some_weights(1)
    chosen = scales_of(data, qtype).nearest(weights)
    assert (chosen == levels).any(0).all()
    best = np.abs(levels - weights).min(0)
    # Of IQ4 the weight is rounded to a whole number of scales before it takes the nearest of the table.
    slack = 0 if kind in EVEN else np.abs(levels[0] - levels[-1]) / np.ptp(IQ4_TABLE)
    assert (np.abs(chosen - weights) <= best + slack + 1e-5).all()
    assert np.mean(np.abs(chosen - weights) > best + 1e-5) < 0.03


def test_codes_of_groups_have_no_scales() -> None:
    assert not any(has_scales(gguf_type(kind)) for kind in ("IQ3_S", "IQ2_XS", "F16"))
