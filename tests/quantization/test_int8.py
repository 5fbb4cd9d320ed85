"""Rows after int8 equal bitsandbytes', and what float16 cannot hold is refused."""

from __future__ import annotations

import numpy as np
import pytest

from edgeft.errors import InputError
from edgeft.quantization import int8


def test_rows_equal_those_of_bitsandbytes() -> None:
    import bitsandbytes as bnb
    import torch

    draw = np.random.default_rng(0)
    rows = draw.normal(0, 0.1, (33, 200)).astype(np.float32)
    rows[5] *= 1000
    packed = bnb.nn.Int8Params(torch.from_numpy(rows.copy()), requires_grad=False).to("cpu")
    if packed.data.dtype != torch.int8:  # it packs on the way to another device only
        packed = packed._quantize("cpu")
    seen = bnb.functional.int8_vectorwise_dequant(packed.CB, packed.SCB)
    np.testing.assert_array_equal(int8.round_trip(rows), seen.numpy())
    assert 0 < np.abs(int8.round_trip(rows) - rows).max() < np.abs(rows).max() / 127


def test_a_row_of_zeros_stays_and_a_too_large_weight_is_refused() -> None:
    rows = np.zeros((2, 8), np.float32)
    np.testing.assert_array_equal(int8.round_trip(rows), rows)
    for bad in (1e6, np.nan):
        rows[1, 1] = bad
        with pytest.raises(InputError, match="beyond the range of float16"):
            int8.round_trip(rows)
