"""One matrix + the Hessian of its inputs -> values on a grid, and the arrays that store them (GPTQ).

    result = solve(weight, hessian, UniformGrid(bits=4, columns=32, symmetric=True))
    result.values                    # the quantized weight
    result.arrays                    # {"codes": …, "scales": …, "zeros": …}

Frantar et al., arXiv 2210.17323: columns are rounded one by one, and the columns that follow make up
for the error in the products with the inputs. The scales of a group are fitted when its first column
is reached, to the values that its columns have by then.

Groups are processed in the order of their largest input, and so are the columns within a group:
important columns come first and find the most others to make up for them. A group still consists of
neighbouring columns (group-aware reordering, arXiv 2505.14638).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from edgeft.errors import ProofError
from edgeft.quantization import ggml, ggml_blocks
from edgeft.weights import gptq_layout

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

Arrays = dict[str, npt.NDArray[Any]]

SHRINKAGE = 0.3
"""Shrinkage of the measured Hessian towards its diagonal (0 = none, 1 = diagonal only, as an
importance matrix). Correlations measured on one small text do not all generalize (Ledoit and Wolf,
https://doi.org/10.1016/S0047-259X(03)00096-4). The value is from benchmarks/studies/LOG.md."""
LAZY_COLUMNS = 128
"""columns after which the rest of the matrix is updated"""
DAMP = 0.01
"""default share of the mean diagonal that is added to the Hessian's diagonal"""
DAMP_TRIES = 5
"""attempts to invert the Hessian, each with ten times the damping of the one before"""
STEP_SHARES = {8: (0.4, 1.12, 19), 16: (0.7, 1.12, 11), 256: (0.7, 1.12, 22)}
"""levels up to which they hold -> first, last and number of the steps to try, as shares of the step that clips
no value. With few levels it pays to clip more, with many a finer search."""
STEP_NEIGHBOURS = (0.98, 1.02)
"""times the best of these steps: half way to the next ones"""
SINGLE_SCALE_LEVELS = {"Q4_0": 16, "Q5_0": 32, "Q8_0": 256}
"""ggml's types whose blocks have one float16 scale -> their levels, around zero"""
REFINEMENTS = 2
"""times that the best step is fitted to its codes by least squares"""


@dataclass
class Scales:
    """The grid of some columns: value = code * step + low."""

    step: Any
    """torch (runs, rows)"""
    low: Any
    """torch (runs, rows)"""
    run: int
    """neighbouring columns that share step and low"""
    levels: int
    """codes are 0 to levels - 1"""
    encoded: Any
    """scales in the form that `Grid.store` needs"""


class Grid(Protocol):
    """The values that a type can store, and how it stores them."""

    @property
    def columns(self) -> int:
        """Columns that get their scales together; -1: all."""

    def fit(self, values: Any, importance: Any) -> Scales:
        """Scales for `values`, torch (columns, rows), weighted by `importance`, (columns,)."""

    def store(self, codes: npt.NDArray[np.uint8], encoded: list[Any]) -> Arrays:
        """`codes` (rows, columns) and each group's `Scales.encoded`, in order of columns."""

    def values(self, arrays: Arrays) -> npt.NDArray[np.float32]:
        """What the arrays of `store` mean, (rows, columns)."""


@dataclass(frozen=True)
class QuantizedMatrix:
    """A matrix after quantization."""

    values: Any
    """torch (rows, columns), float32: exactly what `arrays` mean"""
    arrays: Arrays
    """by `Grid.store`"""
    damp: float
    """damping that the inversion needed"""


def solve(weight: Any, hessian: Any, grid: Grid, damp: float = DAMP) -> QuantizedMatrix:
    """Quantize `weight`, torch (rows, columns), for inputs of `hessian`, (columns, columns); float32.

    Columns whose input is always zero are rounded to the nearest, and make up for nothing.
    ProofError where an element is not finite, or a weight is too large for its scale.
    """
    import torch

    from edgeft.cpu_products import product

    rows, columns = weight.shape
    group_columns = columns if grid.columns == -1 else grid.columns
    hessian, order = _prepared(weight, hessian, group_columns)
    factor, damp = _factor(hessian, damp)
    # Cost of an error in a column once all columns after it have made up for it.
    importance = factor.diagonal() ** -2
    rest = weight.T[order].contiguous()
    codes = np.empty((columns, rows), np.uint8)
    values = torch.empty_like(rest)
    encoded: list[Any] = [None] * (columns // group_columns)
    natural = order.view(-1, group_columns).argsort(dim=1)
    scales: Any = None
    for start, stop in _spans(columns, group_columns):
        current, errors = rest[start:stop], torch.empty_like(rest[start:stop])
        for i in range(stop - start):
            column = int(order[start + i])
            if (start + i) % group_columns == 0:
                # A new group: its columns in their natural order, as the format stores them.
                places = natural[(start + i) // group_columns]
                scales = grid.fit(rest[start + i :][places], importance[start + i :][places])
                encoded[column // group_columns] = scales.encoded
                inverse = _inverse(scales.step)
            run = column % group_columns // scales.run
            step, low = scales.step[run], scales.low[run]
            code = ((current[i] - low) * inverse[run]).round_().clamp_(0, scales.levels - 1)
            codes[start + i] = code.numpy()
            values[start + i] = code.mul_(step).add_(low)
            errors[i] = (current[i] - values[start + i]) / factor[start + i, start + i]
            if i + 1 < stop - start:
                row = factor[start + i, start + i + 1 : stop]
                current[i + 1 :].addr_(row, errors[i], alpha=-1)
        if stop < columns:
            rest[stop:] -= product(factor[start:stop, stop:].T, errors.T)
    back = order.argsort()
    arrays = grid.store(np.ascontiguousarray(codes[back.numpy()].T), encoded)
    return QuantizedMatrix(values[back].T.contiguous(), arrays, damp)


def _prepared(weight: Any, hessian: Any, group_columns: int) -> tuple[Any, Any]:
    """The Hessian scaled, shrunk and in the order of processing; and that order of columns."""
    import torch

    diagonal = hessian.diagonal()
    if not (torch.isfinite(diagonal).all() and torch.isfinite(weight).all()):
        raise ProofError(
            "weights or inputs of a layer are not finite", "are the base's weights whole?"
        )
    # Only its proportions matter. Numbers about 1 neither overflow nor vanish when squared.
    hessian = hessian / (diagonal.double().mean().item() or 1.0)
    diagonal = hessian.diagonal()
    diagonal[diagonal == 0] = 1.0
    hessian = torch.lerp(hessian, hessian.diagonal().diag(), SHRINKAGE)
    order = _order(diagonal, group_columns)
    return hessian[order][:, order], order


def _spans(columns: int, group_columns: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of the columns between two updates: whole groups, or parts of a large one."""
    width = max(LAZY_COLUMNS // group_columns, 1) * group_columns
    for first in range(0, columns, width):
        last = min(first + width, columns)
        for start in range(first, last, LAZY_COLUMNS):
            yield start, min(start + LAZY_COLUMNS, last)


def _order(diagonal: Any, group_columns: int) -> Any:
    """Columns in the order of processing: groups by their largest input, columns likewise."""
    import torch

    groups = diagonal.view(-1, group_columns)
    by_size = groups.amax(1).argsort(stable=True, descending=True)
    within = groups.argsort(dim=1, descending=True, stable=True)
    starts = torch.arange(len(groups))[:, None] * group_columns
    return (starts + within)[by_size].reshape(-1)


def _factor(hessian: Any, damp: float) -> tuple[Any, float]:
    """The upper Cholesky factor of the inverse, and the damping that the inversion needed."""
    import torch

    mean = hessian.diagonal().mean()
    for attempt in range(DAMP_TRIES):
        share = damp * 10**attempt
        damped = hessian.clone()
        damped.diagonal().add_(share * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            inverse = torch.cholesky_inverse(lower)
            factor, failed = torch.linalg.cholesky_ex(inverse, upper=True)
        if not failed and torch.isfinite(factor).all():
            return factor, share
    raise ProofError("the Hessian of a layer cannot be inverted", "more or other --calibration")


@dataclass(frozen=True)
class UniformGrid:
    """The grid of GPTQ files: a float16 scale per group, and a zero where it is not symmetric."""

    bits: int
    columns: int
    """of a group; -1: all"""
    symmetric: bool

    def fit(self, values: Any, importance: Any) -> Scales:
        import torch

        levels = 2**self.bits
        search = _symmetric if self.symmetric else _asymmetric
        best = search(values, importance[:, None], levels)
        step, zero = best.checked(), best.zero
        encoded = step.half().numpy(), zero.to(torch.uint8).numpy()
        return Scales(step[None], (-zero * step)[None], values.shape[0], levels, encoded)

    def store(self, codes: npt.NDArray[np.uint8], encoded: list[Any]) -> Arrays:
        scales, zeros = (np.stack(column, axis=1) for column in zip(*encoded, strict=True))
        return {"codes": codes, "scales": scales, "zeros": zeros}

    def coded(self, arrays: Arrays) -> gptq_layout.Codes:
        """The arrays of `store` as a layer of GPTQ."""
        codes, scales, zeros = arrays["codes"], arrays["scales"], arrays["zeros"]
        columns = codes.shape[1]
        groups = np.arange(columns, dtype=np.int32) // (columns // scales.shape[1])
        return gptq_layout.Codes(codes, scales, zeros, groups, self.bits)

    def values(self, arrays: Arrays) -> npt.NDArray[np.float32]:
        return self.coded(arrays).values()


@dataclass(frozen=True)
class GgmlGrid:
    """The grid of one of ggml's block types.

    The single scale of a block is searched for as in `UniformGrid`. The scales of the K-quants,
    which are codes themselves, are those that ggml's kernel chooses.
    """

    qtype: GGMLQuantizationType

    @property
    def columns(self) -> int:
        from gguf import GGML_QUANT_SIZES

        return int(GGML_QUANT_SIZES[self.qtype][0])

    def fit(self, values: Any, importance: Any) -> Scales:
        import torch

        data = self._scaled(values, importance)
        grid = ggml_blocks.grid_of(data, self.qtype)
        step, low = (torch.from_numpy(part.T.copy()) for part in (grid.step, grid.low))
        return Scales(step, low, grid.run, grid.levels, data)

    def _scaled(self, values: Any, importance: Any) -> npt.NDArray[np.uint8]:
        """One block for each row, with its scales; `store` replaces the codes."""
        import torch

        if self.qtype.name in SINGLE_SCALE_LEVELS:
            from gguf import GGML_QUANT_SIZES

            best = _symmetric(values, importance[:, None], SINGLE_SCALE_LEVELS[self.qtype.name])
            data = np.zeros((values.shape[1], GGML_QUANT_SIZES[self.qtype][1]), np.uint8)
            data[:, :2] = best.checked().half().numpy()[:, None].view(np.uint8)
            return data
        rows = values.T.contiguous().numpy()
        weights = (importance / importance.mean()).numpy()
        try:
            return ggml.quantize(rows, self.qtype, torch.get_num_threads(), weights)
        except ValueError as error:
            raise ProofError(str(error)) from None

    def store(self, codes: npt.NDArray[np.uint8], encoded: list[Any]) -> Arrays:
        return {"data": ggml_blocks.with_codes(np.concatenate(encoded, axis=1), codes, self.qtype)}

    def values(self, arrays: Arrays) -> npt.NDArray[np.float32]:
        data = arrays["data"]
        grid, codes = ggml_blocks.grid_of(data, self.qtype), ggml_blocks.codes_of(data, self.qtype)
        return ggml_blocks.values(grid, codes)


class _ScaleSearch:
    """Finds for each row the scale whose rounding costs a group of columns the least."""

    def __init__(self, values: Any, importance: Any, levels: int) -> None:
        """`values` torch (columns, rows), `importance` (columns, 1)."""
        import torch

        self.values, self.importance, self.levels = values, importance, levels
        self.cost = torch.full_like(values[0], torch.inf)
        self.step = torch.zeros_like(values[0])
        self.zero = torch.full_like(values[0], levels // 2)

    def codes(self, step: Any, zero: Any) -> Any:
        """The rounded values as multiples of the step."""
        rounded = (self.values * _inverse(step)).round_()
        return rounded.clamp_(-zero, self.levels - 1 - zero)

    def attempt(self, step: Any, zero: Any) -> None:
        """Keep `step` and `zero`, (rows,), where they cost less than the best so far."""
        import torch

        error = self.codes(step, zero).mul_(step).sub_(self.values)
        cost = error.square_().mul_(self.importance).sum(0)
        better = cost < self.cost
        self.cost = torch.where(better, cost, self.cost)
        self.step = torch.where(better, step, self.step)
        self.zero = torch.where(better, zero, self.zero)

    def narrow(self, storable: Any) -> None:
        """Try steps on both sides of the best one, rounded by `storable`."""
        step = self.checked()
        for share in STEP_NEIGHBOURS:
            self.attempt(storable(step * share), self.zero)

    def checked(self) -> Any:
        """The best step; ProofError where no step is finite."""
        import torch

        if not torch.isfinite(self.cost).all():
            raise ProofError("a weight is too large for a scale in half precision")
        return self.step

    def refine(self, storable: Any) -> None:
        """Try the least-squares step for the codes of the best step, rounded by `storable`."""
        import torch

        self.checked()
        for _ in range(REFINEMENTS):
            codes = self.codes(self.step, self.zero)
            size = (codes * codes * self.importance).sum(0)
            along = (codes * self.values * self.importance).sum(0)
            self.attempt(storable(torch.where(size > 0, along / size, self.step)), self.zero)


def _symmetric(values: Any, importance: Any, levels: int) -> _ScaleSearch:
    """Steps around a zero in the middle of the codes.

    Codes reach one step further below zero than above, so the step is negative where the largest
    value is positive.
    """
    search = _ScaleSearch(values, importance, levels)
    extreme = values.gather(0, values.abs().argmax(0, keepdim=True))[0]
    for share in _shares(levels):
        search.attempt(_half(extreme * (share / -(levels // 2))), search.zero)
    search.narrow(_half)
    search.refine(_half)
    return search


def _asymmetric(values: Any, importance: Any, levels: int) -> _ScaleSearch:
    """Steps with a zero that is one of the codes but the first, which GPTQ files cannot store."""
    search = _ScaleSearch(values, importance, levels)
    low, high = values.amin(0).clamp_max(0), values.amax(0).clamp_min(0)

    def storable(step: Any) -> Any:
        return _half(step if levels > 16 else _short(step, 12 - levels.bit_length()))

    for share in _shares(levels):
        step = storable((high - low) * (share / (levels - 1)))
        zero = (-low * share * _inverse(step)).round_().clamp_(1, levels - 1)
        search.attempt(step, zero)
    search.narrow(storable)
    search.refine(storable)
    return search


def _shares(levels: int) -> npt.NDArray[np.float64]:
    return np.linspace(*next(shares for most, shares in STEP_SHARES.items() if levels <= most))


def _inverse(step: Any) -> Any:
    """1 / step, and 0 for a step of 0: all its codes are 0."""
    return (1 / step).masked_fill_(step == 0, 0)


def _half(step: Any) -> Any:
    """Rounded to float16, as it is stored."""
    return step.half().float()


def _short(step: Any, bits: int) -> Any:
    """Rounded to `bits` significant bits.

    Then step * zero is a float16 number as well, and ggml's types with a minimum hold the same values.
    """
    import torch

    mantissa, exponent = torch.frexp(step)
    return torch.ldexp((mantissa * 2**bits).round_(), exponent - bits)
