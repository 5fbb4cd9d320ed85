"""The oracle is bitsandbytes on the CPU, with its default kernels."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
import pytest

from edgeft import nf4

Array = npt.NDArray[np.float32]
SHAPES: list[tuple[int, ...]] = [
    (64,), (1,), (63,), (65,), (7, 64), (3, 5, 64), (130, 97), (257, 512),
]  # fmt: skip


def some(shape: tuple[int, ...], scale: float = 0.05) -> Array:
    return (np.random.default_rng(3).standard_normal(shape) * scale).astype(np.float32)


def oracle(weight: Array, double_quant: bool) -> Array:
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(
        torch.from_numpy(weight.copy()), 
        blocksize=nf4.BLOCK, compress_statistics=double_quant, quant_type="nf4",
    )  # fmt: skip
    seen: Array = dequantize_4bit(packed, state).numpy()
    return seen.reshape(weight.shape)


def test_the_levels_are_bitsandbytes() -> None:
    from bitsandbytes.functional import create_dynamic_map, get_4bit_type

    np.testing.assert_array_equal(nf4.LEVELS, get_4bit_type("nf4", device="cpu").numpy())
    theirs = create_dynamic_map().numpy()
    assert nf4.dynamic_map().shape == theirs.shape == (256,)
    np.testing.assert_allclose(nf4.dynamic_map(), theirs, rtol=0, atol=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
def test_values_are_bitsandbytes_without_double_quantization(shape: tuple[int, ...]) -> None:
    weight = some(shape)
    seen = nf4.round_trip(weight, double_quant=False)
    assert seen.dtype == np.float32 and seen.shape == shape
    np.testing.assert_array_equal(seen, oracle(weight, double_quant=False))


def test_codes_are_bitsandbytes() -> None:
    import torch
    from bitsandbytes.functional import quantize_4bit

    weight = some((96, 128))
    blocks = weight.reshape(-1, nf4.BLOCK)
    scale = np.float32(1) / np.abs(blocks).max(axis=1, keepdims=True)
    codes = nf4._nearest(blocks * scale).reshape(-1)
    packed, _ = quantize_4bit(torch.from_numpy(weight), blocksize=nf4.BLOCK, quant_type="nf4")
    theirs = packed.numpy().reshape(-1)
    np.testing.assert_array_equal(codes[0::2] << 4 | codes[1::2], theirs)


def test_borders_and_their_neighbours() -> None:
    """Where the table of cells could be one off: at the borders and one float beside them."""
    borders = nf4._midpoints(nf4.LEVELS)
    below, above = np.nextafter(borders, np.float32(-2)), np.nextafter(borders, np.float32(2))
    cells = np.linspace(-1, 1, nf4._CELLS + 1, dtype=np.float32)
    values = np.concatenate([below, borders, above, cells, nf4.LEVELS, some((50_000,), 0.3)])
    values = values[np.abs(values) <= 1].astype(np.float32)
    np.testing.assert_array_equal(nf4._nearest(values), np.searchsorted(borders, values))
    weight = np.ones((len(borders) * 3 + 63) // 63 * 64, np.float32).reshape(-1, 64)
    flat = np.concatenate([below, borders, above])
    weight[:, 1:].reshape(-1)[: len(flat)] = flat  # a copy, so written back below
    packed = weight[:, 1:].copy().reshape(-1)
    packed[: len(flat)] = flat
    weight[:, 1:] = packed.reshape(len(weight), 63)
    np.testing.assert_array_equal(nf4.round_trip(weight, False), oracle(weight, False))


@pytest.mark.parametrize("double_quant", [False, True])
def test_zeros_stay_zero(double_quant: bool) -> None:
    assert not nf4.round_trip(np.zeros((4, 64), np.float32), double_quant).any()
    weight = some((9, 64))
    weight[3] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen = nf4.round_trip(weight, double_quant)
    assert not seen[3].any()
    np.testing.assert_allclose(seen, oracle(weight, double_quant), rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-37, 1e-39, 1e-42, 1e-45])
def test_blocks_too_small_for_a_reciprocal(scale: float) -> None:
    """1 / 1e-39 is infinite in float32; a dead channel of a bf16 model can hold such weights."""
    weight = some((2, 64), scale)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen = nf4.round_trip(weight, double_quant=False)
    assert np.abs(seen - weight).max() <= max(3e-39, 0.16 * np.abs(weight).max())


def test_double_quantization_is_within_one_step_of_bitsandbytes() -> None:
    """Not equal: bitsandbytes' CPU kernel for the 8-bit maxima does not always take the nearest
    of the 256 levels (about 0.2 % of the blocks here). Where the two differ ours is the nearer."""
    weight = some((512, 512))
    seen, theirs = nf4.round_trip(weight), oracle(weight, double_quant=True)
    absmax = np.abs(weight).reshape(-1, 64).max(axis=1)
    blocks = np.abs(seen - theirs).reshape(-1, 64).max(axis=1)
    differ = blocks > 1e-6
    assert differ.mean() < 0.01, f"{differ.mean():.2%} of the blocks differ"
    step = np.diff(nf4.dynamic_map()).max() * np.abs(absmax - absmax.mean()).max()
    assert blocks.max() <= step * 1.001
    ours_off, theirs_off = (
        np.abs(np.abs(x).reshape(-1, 64).max(axis=1) - absmax) for x in (seen, theirs)
    )
    assert (ours_off[differ] <= theirs_off[differ] + 1e-7).all()
    # The comparison can tell: without double quantization far more blocks differ.
    plain = np.abs(nf4.round_trip(weight, double_quant=False) - theirs).reshape(-1, 64)
    assert (plain.max(axis=1) > 1e-6).mean() > 0.9


def test_a_second_round_trip_changes_nothing() -> None:
    """Each block's largest weight is stored exactly, so the levels land on themselves."""
    once = nf4.round_trip(some((33, 64)), double_quant=False)
    np.testing.assert_array_equal(nf4.round_trip(once, double_quant=False), once)


def test_the_error_is_at_most_half_the_widest_gap() -> None:
    weight = some((100, 64))
    seen = nf4.round_trip(weight, double_quant=False)
    half = np.diff(nf4.LEVELS).max() / 2
    bound = np.abs(weight).max(axis=1, keepdims=True) * half
    assert (np.abs(seen - weight) <= bound * 1.0001).all()
    assert len(np.unique(seen[0])) <= 16


def test_the_input_is_left_alone_and_a_view_is_fine() -> None:
    weight = some((64, 96))
    before = weight.copy()
    seen = nf4.round_trip(weight.T)
    np.testing.assert_array_equal(weight, before)
    np.testing.assert_array_equal(seen, nf4.round_trip(np.ascontiguousarray(weight.T)))
