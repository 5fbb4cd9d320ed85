"""The oracle is GPTQ as the paper has it: column by column, in float64, without lazy blocks."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgeft.errors import ProofError
from edgeft.gptq import solver
from edgeft.gptq.solver import Arrays, GgmlGrid, Grid, Scales, UniformGrid, solve
from edgeft.quantization import ggml, ggml_blocks

torch: Any = pytest.importorskip("torch")

Matrix = npt.NDArray[np.float64]

QTYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")


def blocks(name: str) -> GgmlGrid:
    from gguf import GGMLQuantizationType

    return GgmlGrid(GGMLQuantizationType[name])


def sample(
    rows: int, columns: int, inputs: int = 2000, seed: int = 0, mixed: float = 1.0
) -> tuple[Any, Any]:
    """(weight, hessian): inputs of different size that hang on each other as far as `mixed`."""
    draw = np.random.default_rng(seed)
    mix = np.eye(columns) + mixed * draw.standard_normal((columns, columns)) / np.sqrt(columns)
    given = draw.standard_normal((inputs, columns)) @ mix * np.exp(draw.normal(0, 1, columns))
    weight = draw.normal(0, 0.02, (rows, columns)).astype(np.float32)
    return torch.from_numpy(weight), torch.from_numpy((given.T @ given).astype(np.float32))


def loss(weight: Any, values: Any, hessian: Any) -> float:
    error = (weight - values).double()
    return float(((error @ hessian.double()) * error).sum())


@dataclasses.dataclass(frozen=True)
class Seen:
    """Records the arguments of `fit`."""

    grid: Grid
    fitted: list[tuple[Any, Any, Scales]] = dataclasses.field(default_factory=list)

    @property
    def columns(self) -> int:
        return self.grid.columns

    def fit(self, values: Any, importance: Any) -> Scales:
        scales = self.grid.fit(values, importance)
        self.fitted.append((values.clone(), importance.clone(), scales))
        return scales

    def store(self, codes: npt.NDArray[np.uint8], encoded: list[Any]) -> Arrays:
        return self.grid.store(codes, encoded) | {"codes": codes}

    def values(self, arrays: Arrays) -> npt.NDArray[np.float32]:
        return self.grid.values(arrays)


def textbook(
    weight: Matrix, hessian: Matrix, unit: int, damp: float, fitted: list[tuple[Any, Any, Scales]]
) -> tuple[npt.NDArray[np.uint8], Matrix]:
    """Codes by the scales that were fitted, and how far the columns were from what they were fitted
    to: of each row the largest difference."""
    columns = len(hessian)
    diagonal = hessian.diagonal()
    groups = sorted(range(columns // unit), key=lambda g: -diagonal[g * unit :][:unit].max())
    order = [
        column
        for group in groups
        for column in sorted(range(group * unit, (group + 1) * unit), key=lambda c: -diagonal[c])
    ]
    shrunk = (1 - solver.SHRINKAGE) * hessian + solver.SHRINKAGE * np.diag(diagonal)
    damped = shrunk + damp * diagonal.mean() * np.eye(columns)
    factor = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
    left = weight.copy()
    codes = np.zeros(weight.shape, np.uint8)
    apart = np.zeros(len(weight))
    for i, column in enumerate(order):
        if i % unit == 0:
            start = column // unit * unit
            values, importance, scales = fitted[i // unit]
            cost = factor.diagonal()[np.argsort(order)][start : start + unit] ** -2
            assert np.allclose(importance * diagonal.mean(), cost, 1e-3)
            given = np.abs(values.T.numpy() - left[:, start : start + unit])
            apart = np.maximum(apart, given.max(1))
            step, low = (np.asarray(part, np.float64) for part in (scales.step, scales.low))
        run = (column - start) // scales.run
        with np.errstate(divide="ignore", invalid="ignore"):
            code = np.where(step[run], np.rint((left[:, column] - low[run]) / step[run]), 0)
        codes[:, column] = code = code.clip(0, scales.levels - 1)
        error = (left[:, column] - (code * step[run] + low[run])) / factor[i, i]
        rest = order[i + 1 :]
        left[:, rest] -= np.outer(error, factor[i, i + 1 :])
    return codes, apart


@pytest.mark.parametrize(
    ("grid", "columns"),
    [
        (UniformGrid(4, 32, True), 96),
        (UniformGrid(3, 64, False), 320),
        (UniformGrid(2, 96, False), 288),
        (UniformGrid(4, -1, True), 200),
        (UniformGrid(8, 128, True), 384),
        (blocks("Q4_0"), 160),
        (blocks("Q4_K"), 512),
        (blocks("Q6_K"), 256),
    ],
    ids=str,
)
@pytest.mark.parametrize("bits", [32, 64])
def test_codes_are_those_of_the_paper(grid: Grid, columns: int, bits: int) -> None:
    """In float64 all of them. In float32 a value halfway between two may go to the other, and then
    the rest of its row differs; with 8 bits, where the steps are small, that happens."""
    weight, hessian = (part.to(getattr(torch, f"float{bits}")) for part in sample(24, columns))
    seen = Seen(grid)
    solved = solve(weight, hessian, seen, damp=0.05)
    unit = columns if grid.columns == -1 else grid.columns
    wanted, apart = textbook(
        weight.double().numpy(), hessian.double().numpy(), unit, 0.05, seen.fitted
    )
    same = (solved.arrays["codes"] == wanted).all(1) & (apart < (1e-5 if bits == 32 else 1e-10))
    assert same.all() if bits == 64 else same.mean() > 0.9
    assert solved.damp == 0.05


GRIDS = [
    *(UniformGrid(bits, size, sym)
      for bits in (2, 3, 4, 8) for size in (32, 64, -1) for sym in (True, False)),
    *map(blocks, QTYPES),
]  # fmt: skip


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_values_are_those_of_the_arrays(grid: Grid) -> None:
    """To the bit, rows and groups of zeros included."""
    weight, hessian = sample(20, 512)
    weight[3] = 0
    weight[5, 128:] = 0
    weight[6:8] *= 1e-5
    weight[8] = weight[8].abs()
    weight[9] = -weight[9].abs()
    weight[10] = 0.01
    solved = solve(weight, hessian, grid)
    assert solved.values.shape == weight.shape and torch.isfinite(solved.values).all()
    assert np.array_equal(grid.values(solved.arrays), solved.values.numpy())
    assert not solved.values[3].any()
    if isinstance(grid, UniformGrid):
        groups = 1 if grid.columns == -1 else 512 // grid.columns
        scales, zeros, codes = (solved.arrays[key] for key in ("scales", "zeros", "codes"))
        assert scales.shape == zeros.shape == (20, groups) and scales.dtype == np.float16
        assert codes.shape == (20, 512) and codes.max() < 2**grid.bits
        assert zeros.min() >= 1 and zeros.max() < 2**grid.bits
        assert not grid.symmetric or (zeros == 2 ** (grid.bits - 1)).all()
        if grid.bits <= 4:
            low = scales.astype(np.float64) * zeros
            assert (low == low.astype(np.float16)).all()
    else:
        from gguf import dequantize

        data = dequantize(solved.arrays["data"], grid.qtype)  # type: ignore[attr-defined]
        assert np.array_equal(data, solved.values.numpy())


def rounded(weight: Any, grid: Grid) -> Any:
    """Without any feedback: every input is by itself."""
    return solve(weight, torch.eye(weight.shape[1]), grid).values


@pytest.mark.parametrize(
    ("grid", "factor"),
    [
        (UniformGrid(4, 32, True), 2), (UniformGrid(4, 64, False), 2), (UniformGrid(3, 128, True), 2),
        (UniformGrid(2, 64, False), 1.8), (UniformGrid(8, -1, True), 2), (blocks("Q4_0"), 2),
        (blocks("Q4_K"), 2),
    ],
    ids=str,
)  # fmt: skip
def test_loss_is_lower_than_that_of_rounding(grid: Grid, factor: float) -> None:
    weight, hessian = sample(64, 256, mixed=3.0)
    solved = solve(weight, hessian, grid)
    plain = loss(weight, rounded(weight, grid), hessian)
    assert factor * loss(weight, solved.values, hessian) < plain


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_uncorrelated_inputs_are_rounded(grid: Grid) -> None:
    """Nothing can make up for an error, so that each value goes to the nearest of its grid."""
    weight, _ = sample(16, 256)
    seen = Seen(grid)
    solved = solve(weight, 40 * torch.eye(256), seen)
    unit = 256 if grid.columns == -1 else grid.columns
    for group, (values, _, scales) in enumerate(seen.fitted):
        columns = slice(group * unit, (group + 1) * unit)
        assert torch.equal(values.T, weight[:, columns])
        levels = torch.arange(scales.levels)[:, None, None]
        step, low = (part.repeat_interleave(scales.run, 0) for part in (scales.step, scales.low))
        errors = (levels * step + low - values).abs().amin(0)
        mine = (solved.values[:, columns].T - values).abs()
        assert (mine <= errors * (1 + 1e-4) + 1e-9).all()
    if isinstance(grid, GgmlGrid) and grid.qtype.name.endswith("_K"):
        data = ggml.quantize(weight.numpy(), grid.qtype, 1, np.ones(256, np.float32))
        mine, other = (ggml_blocks.grid_of(d, grid.qtype) for d in (solved.arrays["data"], data))
        assert np.array_equal(mine.step, other.step) and np.array_equal(mine.low, other.low)
        found, wanted = (ggml_blocks.codes_of(d, grid.qtype) for d in (solved.arrays["data"], data))
        assert (found == wanted).mean() > 0.9


def test_scales_weigh_inputs() -> None:
    """What is read loudly is met better, whatever the others need."""
    weight, _ = sample(200, 32)
    importance = torch.ones(32)
    importance[7] = 1e4
    for grid in (UniformGrid(3, 32, True), UniformGrid(3, 32, False)):
        errors = []
        for weights in (torch.ones(32), importance):
            scales = grid.fit(weight.T, weights)
            step, low = scales.step[0], scales.low[0]
            code = ((weight[:, 7] - low) / step).round().clamp(0, 7)
            errors.append(float((code * step + low - weight[:, 7]).square().mean()))
        assert errors[1] < errors[0] / 8


def test_every_scale_of_the_search_counts() -> None:
    """Not worse than the step that cuts nothing off, and for rows with an outlier far better."""
    draw = np.random.default_rng(0)
    values = torch.from_numpy(draw.normal(0, 1, (128, 50)).astype(np.float32))
    for symmetric in (True, False):
        scales = UniformGrid(2, 128, symmetric).fit(values, torch.ones(128))
        code = ((values - scales.low[0]) / scales.step[0]).round().clamp(0, 3)
        found = (code * scales.step[0] + scales.low[0] - values).square().mean(0)
        step = values.abs().amax(0) / 2 if symmetric else (values.amax(0) - values.amin(0)) / 3
        low = -2 * step if symmetric else values.amin(0)
        code = ((values - low) / step).round().clamp(0, 3)
        plain = (code * step + low - values).square().mean(0)
        assert (found < plain).all() and found.mean() < 0.8 * plain.mean()


@pytest.mark.parametrize(
    "grid", [UniformGrid(4, 32, True), UniformGrid(4, 32, False), blocks("Q4_0")]
)
def test_dead_columns(grid: Grid) -> None:
    """They are rounded, and the others come out as if each dead one were alone."""
    weight, hessian = sample(16, 128)
    dead = [3, 40, 41, 42, *range(64, 96)]
    hessian[dead] = 0
    hessian[:, dead] = 0
    solved = solve(weight, hessian, grid)
    assert torch.isfinite(solved.values).all()
    scale = 0.02 * 4 / 8
    assert (solved.values - weight)[:, dead].abs().max() < 2 * scale
    other = weight.clone()
    other[:, 64:96] = 0.01
    again = solve(other, hessian, grid)
    alive = [*range(64), *range(96, 128)]
    assert torch.equal(again.values[:, alive], solved.values[:, alive])
    assert torch.isfinite(solve(weight, torch.zeros(128, 128), grid).values).all()


@pytest.mark.parametrize("inputs", [1, 20, 100])
def test_fewer_inputs_than_columns(inputs: int) -> None:
    weight, hessian = sample(32, 256, inputs=inputs)
    grid = UniformGrid(4, 32, True)
    solved = solve(weight, hessian, grid)
    assert torch.isfinite(solved.values).all()
    assert loss(weight, solved.values, hessian) < loss(weight, rounded(weight, grid), hessian) / 2


def test_damping_grows_where_it_is_needed() -> None:
    """A matrix that no inputs have: its smallest eigenvalue is below zero."""
    weight, hessian = sample(16, 64, mixed=0)
    values, vectors = torch.linalg.eigh(hessian.double())
    values[0] = -0.3 * hessian.diagonal().mean()
    broken = (vectors @ torch.diag(values) @ vectors.T).float()
    solved = solve(weight, broken, UniformGrid(4, 32, True))
    assert solved.damp == pytest.approx(1.0) and torch.isfinite(solved.values).all()
    values[0] = -1e4 * hessian.diagonal().mean()
    broken = (vectors @ torch.diag(values) @ vectors.T).float()
    broken.diagonal().copy_(hessian.diagonal())
    with pytest.raises(ProofError, match="cannot be inverted"):
        solve(weight, broken, UniformGrid(4, 32, True))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("grid", [UniformGrid(4, 32, True), blocks("Q4_0")])
def test_weights_and_inputs_that_are_not_finite_are_refused(grid: Grid, value: float) -> None:
    weight, hessian = sample(8, 64)
    given = hessian.clone()
    given[5, 5] = value
    with pytest.raises(ProofError, match="not finite"):
        solve(weight, given, grid)
    given = hessian.clone()
    given[5, 6] = given[6, 5] = value
    with pytest.raises(ProofError, match="cannot be inverted"):
        solve(weight, given, grid)
    weight[1, 1] = value
    with pytest.raises(ProofError, match="not finite"):
        solve(weight, hessian, grid)


@pytest.mark.parametrize(
    "grid",
    [UniformGrid(4, 32, True), UniformGrid(4, 32, False), UniformGrid(8, -1, False),
     *map(blocks, ("Q4_0", "Q4_1", "Q4_K", "Q6_K"))],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("size", [1e-30, 1e-7, 1e-3, 1e3, 1e9, 1e25])
def test_weights_of_any_size(grid: Grid, size: float) -> None:
    """Half-precision scales hold them, or they vanish, or they are refused; never a NaN."""
    weight, hessian = sample(8, 256)
    weight = weight / weight.abs().max() * size
    try:
        solved = solve(weight, hessian, grid)
    except ProofError as error:
        assert size > 1e5 and "too large" in str(error)
        return
    assert size < 1e5
    assert torch.isfinite(solved.values).all() and np.isfinite(grid.values(solved.arrays)).all()
    if size >= 1e-3:
        assert loss(weight, solved.values, hessian) < 0.05 * loss(weight, 0 * weight, hessian)


@pytest.mark.parametrize("size", [1e-35, 1e30])
def test_inputs_of_any_size(size: float) -> None:
    """Only their proportions matter."""
    weight, hessian = sample(16, 128)
    grid = UniformGrid(4, 32, True)
    one, other = solve(weight, hessian, grid), solve(weight, hessian * size, grid)
    assert (one.arrays["codes"] == other.arrays["codes"]).mean() > 0.98


@pytest.mark.parametrize("unit", [32, 96, 384, -1])
def test_lazy_blocks_change_nothing(unit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian = sample(16, 384)
    grid = UniformGrid(4, unit, True)
    found = []
    for lazy in (1, 40, 128, 1000):
        monkeypatch.setattr(solver, "LAZY_COLUMNS", lazy)
        found.append(solve(weight, hessian, grid))
    for other in found[1:]:
        assert (other.arrays["codes"] == found[0].arrays["codes"]).mean() > 0.98


@pytest.mark.parametrize("grid", [UniformGrid(4, 64, False), blocks("Q4_K")])
def test_same_result_every_time(grid: Grid) -> None:
    weight, hessian = sample(64, 512)
    before = weight.clone(), hessian.clone()
    one, other = solve(weight, hessian, grid), solve(weight, hessian, grid)
    assert torch.equal(one.values, other.values)
    assert all(np.array_equal(one.arrays[key], other.arrays[key]) for key in one.arrays)
    assert torch.equal(weight, before[0]) and torch.equal(hessian, before[1])


def test_rows_are_independent() -> None:
    """Layers that read the same inputs are solved together, with what each would get alone."""
    weight, hessian = sample(40, 128)
    grid = UniformGrid(4, 32, True)
    whole = solve(weight, hessian, grid).arrays["codes"]
    parts = [
        solve(weight[rows], hessian, grid).arrays["codes"] for rows in (slice(10), slice(10, 40))
    ]
    assert (np.concatenate(parts) == whole).mean() > 0.98
