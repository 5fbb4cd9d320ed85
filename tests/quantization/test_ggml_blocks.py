"""The oracles are gguf-py's dequantize and the dequantize_row_* of ggml's own library."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgeft.quantization import ggml
from edgeft.quantization.ggml_blocks import codes_of, grid_of, supports, values, with_codes

Bytes = npt.NDArray[np.uint8]

LEVELS = {
    "Q4_0": 16, "Q4_1": 16, "Q5_0": 32, "Q5_1": 32, "Q8_0": 256,
    "Q2_K": 4, "Q3_K": 8, "Q4_K": 16, "Q5_K": 32, "Q6_K": 64,
}  # fmt: skip
HALVES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}  # fmt: skip
"""where a block's float16 are"""
SIXTEEN = ("Q2_K", "Q3_K", "Q6_K")
CENTRED = ("Q4_0", "Q5_0", "Q8_0", "Q3_K", "Q6_K")

every_kind = pytest.mark.parametrize("kind", LEVELS)


def gguf_type(kind: str) -> Any:
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType[kind]


def block_of(kind: str) -> tuple[int, int]:
    from gguf import GGML_QUANT_SIZES

    columns, size = GGML_QUANT_SIZES[gguf_type(kind)]
    return columns, size


def random_bytes(kind: str, rows: int, blocks: int, seed: int = 0) -> Bytes:
    """Any bytes whose scales are finite: some are 0, -0 or subnormal, half of them negative."""
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (rows, blocks, block_of(kind)[1]), np.uint8)
    for start in HALVES[kind]:
        half = rng.standard_normal((rows, blocks, 1)).astype(np.float16)
        half *= rng.choice(np.array([1, 1, 1e-3, 1e-6, 0], np.float16), half.shape)
        data[..., start : start + 2] = half.view(np.uint8)
    return data.reshape(rows, blocks * data.shape[2])


def quantized(kind: str, rows: int, columns: int, weighted: bool) -> Bytes:
    """ggml's own, of ordinary rows, constant and zero ones, and rows of one sign."""
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((rows, columns), np.float32) * np.float32(0.02)
    weight[1::6] = np.abs(weight[1::6])
    weight[2::6] = -np.abs(weight[2::6])
    weight[3::6] = 0.01
    weight[4::6] = -0.01
    weight[5::6, columns // 2 :] = 0
    importance = rng.random(columns, np.float32) ** 4 if weighted else None
    return ggml.quantize(weight, gguf_type(kind), 1, importance)


def dequantized(data: Bytes, kind: str) -> npt.NDArray[np.uint32]:
    """The bits of what gguf-py makes of `data`; what ggml makes of it is the same."""
    from gguf import dequantize

    result = dequantize(data, gguf_type(kind))
    native = ggml.dequantize(data, gguf_type(kind))
    assert np.array_equal(result.view(np.uint32), native.view(np.uint32))
    return result.view(np.uint32)


def hold(data: Bytes, kind: str) -> None:
    """Codes and grid of `data` say what it holds, and other codes go in without another change."""
    qtype = gguf_type(kind)
    grid, codes = grid_of(data, qtype), codes_of(data, qtype)
    columns, size = block_of(kind)
    assert codes.shape == (len(data), data.shape[1] // size * columns)
    assert grid.levels == LEVELS[kind] and grid.run == (16 if kind in SIXTEEN else 32)
    assert grid.step.shape == grid.low.shape == (len(data), codes.shape[1] // grid.run)
    assert grid.step.dtype == grid.low.dtype == np.float32
    assert np.array_equal(values(grid, codes).view(np.uint32), dequantized(data, kind))
    assert np.array_equal(with_codes(data, codes, qtype), data)

    rng = np.random.default_rng(2)
    before = data.copy()
    for low, high in ((0, grid.levels), (0, 1), (grid.levels - 1, grid.levels)):
        others = rng.integers(low, high, codes.shape, np.uint8)
        result = with_codes(data, others, qtype)
        assert result.shape == data.shape and result.dtype == np.uint8
        meant = values(grid, others)
        assert np.array_equal(meant.view(np.uint32), dequantized(result, kind))
        assert np.array_equal(codes_of(result, qtype), others)
        assert np.array_equal(with_codes(result, codes, qtype), data)
        step, start = (np.repeat(part, grid.run, 1) for part in (grid.step, grid.low))
        assert np.array_equal(meant, start + step * others)
    assert np.array_equal(data, before)


@every_kind
@pytest.mark.parametrize(("rows", "blocks"), [(1, 1), (7, 3), (33, 2)])
def test_any_bytes(kind: str, rows: int, blocks: int) -> None:
    hold(random_bytes(kind, rows, blocks), kind)


@every_kind
@pytest.mark.parametrize(("rows", "blocks"), [(0, 2), (2, 0)])
def test_no_bytes(kind: str, rows: int, blocks: int) -> None:
    qtype = gguf_type(kind)
    data = random_bytes(kind, rows, blocks)
    codes = codes_of(data, qtype)
    assert codes.shape == (rows, blocks * block_of(kind)[0])
    assert with_codes(data, codes, qtype).shape == data.shape
    assert values(grid_of(data, qtype), codes).shape == codes.shape


@every_kind
def test_any_bytes_hold_every_code_and_scale(kind: str) -> None:
    data = random_bytes(kind, 64, 4)
    grid = grid_of(data, gguf_type(kind))
    assert set(codes_of(data, gguf_type(kind)).flat) == set(range(LEVELS[kind]))
    for part in (grid.step, grid.low):
        assert (part > 0).any() and (part < 0).any() and (part == 0).any()


@every_kind
@pytest.mark.parametrize("weighted", [False, True])
def test_blocks_that_ggml_quantized(kind: str, weighted: bool) -> None:
    data = quantized(kind, 12, 512, weighted)
    hold(data, kind)
    grid = grid_of(data, gguf_type(kind))
    assert (grid.step == 0).any()
    if kind in CENTRED and kind != "Q8_0":  # whose scale is never negative
        assert (grid.step < 0).any() and (grid.step > 0).any()


@pytest.mark.parametrize("kind", [kind for kind in LEVELS if not kind.endswith("_K")])
def test_small_blocks_need_no_256_columns(kind: str) -> None:
    hold(quantized(kind, 12, 96, weighted=True), kind)


@every_kind
def test_code_of_zero(kind: str) -> None:
    data = random_bytes(kind, 5, 2)
    grid = grid_of(data, gguf_type(kind))
    assert (grid.zero is not None) == (kind in CENTRED)
    if grid.zero is not None:
        codes = np.full_like(codes_of(data, gguf_type(kind)), grid.zero)
        assert not values(grid, codes).any()
        assert np.array_equal(grid.low, -grid.zero * grid.step)


@every_kind
def test_slices_of_rows_and_blocks(kind: str) -> None:
    qtype = gguf_type(kind)
    columns, size = block_of(kind)
    whole = random_bytes(kind, 6, 5)
    whole.flags.writeable = False
    part = whole[1::2, size : 4 * size]
    assert not part.flags.c_contiguous
    codes = codes_of(whole, qtype)[1::2, columns : 4 * columns]
    assert np.array_equal(codes_of(part, qtype), codes)
    hold(part, kind)
    result = with_codes(part, codes, qtype)
    assert np.array_equal(result, part)
    result[:] = 0  # a copy, which may be written to
    grid, wanted = grid_of(part, qtype), grid_of(part.copy(), qtype)
    assert np.array_equal(grid.step, wanted.step) and np.array_equal(grid.low, wanted.low)
    assert np.array_equal(values(grid, codes), values(wanted, codes.copy()))


@every_kind
def test_unfitting_arrays_are_refused(kind: str) -> None:
    qtype = gguf_type(kind)
    data = random_bytes(kind, 2, 1)
    codes, grid = codes_of(data, qtype), grid_of(data, qtype)
    for wrong in (data[:, :-1], data[0], data[None], data.view(np.int8)):
        for call in (grid_of, codes_of):
            with pytest.raises(ValueError, match="data"):
                call(wrong, qtype)
        with pytest.raises(ValueError, match="data"):
            with_codes(wrong, codes, qtype)
    for bad in (codes[:1], codes[:, :-1], codes.ravel(), codes.T, codes.astype(np.int64)):
        with pytest.raises(ValueError, match="are not uint8"):
            with_codes(data, bad, qtype)
        with pytest.raises(ValueError, match="are not uint8"):
            values(grid, bad)
    if LEVELS[kind] < 256:
        codes[1, -1] = LEVELS[kind]
        with pytest.raises(ValueError, match=f"code {LEVELS[kind]} is not below"):
            with_codes(data, codes, qtype)
        with pytest.raises(ValueError, match=f"code {LEVELS[kind]} is not below"):
            values(grid, codes)


def test_types_without_a_linear_grid_are_refused() -> None:
    from gguf import GGMLQuantizationType

    assert {qtype.name for qtype in GGMLQuantizationType if supports(qtype)} == set(LEVELS)
    for name in ("IQ4_NL", "F16", "Q8_K"):
        with pytest.raises(ValueError, match=f"{name} are not evenly spaced"):
            grid_of(np.zeros((1, 4), np.uint8), GGMLQuantizationType[name])
