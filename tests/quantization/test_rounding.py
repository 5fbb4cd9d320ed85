"""Codes rounded to the nearest: the grid's nearest values, whatever rows are rounded together."""

from __future__ import annotations

import numpy as np
import pytest

from edgeft.quantization import group_codes
from edgeft.quantization.group_codes import nearest_codes
from edgeft.quantization.rounding import CodesRounding, rounding_named

pytestmark = pytest.mark.unit


@pytest.fixture
def values() -> np.ndarray:
    values = np.random.default_rng(0).normal(0, 0.05, (37, 192)).astype(np.float32)
    values[3, 64:128] = 0
    return values


@pytest.mark.parametrize(("bits", "columns"), [(4, 64), (3, 32), (8, -1)])
def test_every_value_is_the_nearest_of_its_group(
    values: np.ndarray, bits: int, columns: int
) -> None:
    rounding = CodesRounding(bits, columns, "f16")
    codes = rounding.store(values)
    assert codes.scales.dtype == np.float16
    found = rounding.values(codes, 192)
    groups = values.reshape(37, -1, 192 if columns == -1 else columns)
    steps = codes.scales.astype(np.float32)[..., None, None]
    levels = steps * np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1), dtype=np.float32)
    best = np.abs(groups[..., None] - levels).min(-1)
    assert np.allclose(np.abs(found.reshape(groups.shape) - groups), best, atol=1e-7)
    # The largest value of a group is the first level, so that the group is covered.
    largest = np.abs(groups).max(-1)
    assert np.allclose(np.abs(steps[..., 0, 0]) * 2 ** (bits - 1), largest, rtol=1e-3)


def test_rows_are_rounded_by_themselves(
    values: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounding = CodesRounding(4, 32, "f32")
    whole = rounding.digest([rounding.store(values)])
    parts = [rounding.store(values[start : start + 5]) for start in range(0, 37, 5)]
    assert rounding.digest(parts) == whole
    monkeypatch.setattr(group_codes, "STEP_VALUES", 192)
    assert rounding.digest([rounding.store(values, threads=3)]) == whole
    values[20, 7] += 0.01
    assert rounding.digest([rounding.store(values)]) != whole


def test_a_scale_beyond_its_type_is_refused(values: np.ndarray) -> None:
    values[0, 0] = 1e6
    assert np.isfinite(nearest_codes(values, 4, 32).scales).all()
    with pytest.raises(ValueError, match="too large for a scale in float16"):
        nearest_codes(values, 4, 32, np.float16)


@pytest.mark.parametrize("name", ["int4_g32_f32", "int8_row_f16", "Q4_0", "F16", "IQ4_NL"])
def test_a_rounding_has_a_name_that_gives_it_back(name: str) -> None:
    assert rounding_named(name).name == name
