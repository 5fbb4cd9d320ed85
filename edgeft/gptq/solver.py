"""GPTQ of one matrix: round column by column, and let the columns to come make up for the error.

    solved = solve(weight, hessian, Uniform(bits=4, columns=32, symmetric=True))
    solved.values                    # what became of the weight
    solved.stored                    # the arrays that hold it

Frantar et al., arXiv 2210.17323: of the matrices on a grid find one whose products with the inputs
differ little. The scales of a group of columns are fitted when it is reached, to what the columns
have become by then. Groups come in the order of their largest input, and so do the columns in each:
the important ones find the most others to make up for them, and a group still is of neighbours
(group-aware reordering, arXiv 2505.14638).
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

SHRINK = 0.3
"""how far the Hessian goes from what was measured to its diagonal: of the many ways in which inputs
hang together, a sample and one kind of text show some that others do not have (shrinkage to a
diagonal target, Ledoit and Wolf, https://doi.org/10.1016/S0047-259X(03)00096-4). At 1 there is no
feedback, and the diagonal is what an importance matrix holds. See benchmarks/LOG.md."""
LAZY = 128
"""columns after which the rest of the matrix is brought up to date"""
DAMP = 0.01
"""share of the mean diagonal that is added to the diagonal"""
TRIES = 5
"""with ten times as much damping each, until the Hessian can be inverted"""
SHARES, COARSE = (0.7, 1.12, 22), (0.4, 1.12, 37)
"""first, last and number of the steps that are tried, as shares of the one that cuts nothing off; with
up to 8 levels it pays to cut more off"""
ONE_SCALE = {"Q4_0": 16, "Q5_0": 32, "Q8_0": 256}
"""ggml's types whose blocks are a float16 scale and as many levels around zero"""
REFINED = 2
"""times that the best step is fitted to its codes"""


@dataclass
class Scales:
    """The grid of some columns: code * step + low, torch (runs, rows)."""

    step: Any
    low: Any
    run: int
    """columns that share a step"""
    levels: int
    made: Any
    """what the kind needs to store them"""


class Kind(Protocol):
    """A kind of grid."""

    @property
    def columns(self) -> int:
        """That get their scales together; -1: all."""

    def fit(self, values: Any, importance: Any) -> Scales:
        """`values` torch (columns, rows), `importance` (columns,)."""

    def store(self, codes: npt.NDArray[np.uint8], made: list[Any]) -> Arrays:
        """`codes` (rows, columns) and what the groups' scales are made of, in their order."""

    def values(self, stored: Arrays) -> npt.NDArray[np.float32]:
        """What `stored` says, (rows, columns)."""


@dataclass(frozen=True)
class Solved:
    values: Any
    """torch (rows, columns), float32: exactly what `stored` says"""
    stored: Arrays
    """by the kind"""
    damp: float
    """that was needed"""


def solve(weight: Any, hessian: Any, kind: Kind, damp: float = DAMP) -> Solved:
    """`weight` torch (rows, columns) and `hessian` (columns, columns), both float32.

    Columns whose input is always zero are rounded like any other, and make up for nothing.
    ProofError where one of them is not finite (the model computes what are no numbers), or a weight
    too large for its scale.
    """
    import torch

    rows, columns = weight.shape
    unit = columns if kind.columns == -1 else kind.columns
    diagonal = hessian.diagonal()
    if not (torch.isfinite(diagonal).all() and torch.isfinite(weight).all()):
        raise ProofError(
            "weights or inputs of a layer are not finite", "are the base's weights whole?"
        )
    # Only its proportions matter, and what is about 1 neither overflows nor vanishes when squared.
    hessian = hessian / (diagonal.double().mean().item() or 1.0)
    diagonal = hessian.diagonal()
    diagonal[diagonal == 0] = 1.0
    hessian = torch.lerp(hessian, hessian.diagonal().diag(), SHRINK)
    order = _order(diagonal, unit)
    hessian = hessian[order][:, order]
    factor, damp = _factor(hessian, damp)
    # What an error in a column costs once all columns after it have made up for it.
    importance = factor.diagonal() ** -2
    left = weight.T[order].contiguous()
    codes = np.empty((columns, rows), np.uint8)
    values = torch.empty_like(left)
    made: list[Any] = [None] * (columns // unit)
    natural = order.view(-1, unit).argsort(dim=1)
    scales: Any = None
    for start, stop in _spans(columns, unit):
        now, errors = left[start:stop], torch.empty_like(left[start:stop])
        for i in range(stop - start):
            if (start + i) % unit == 0:
                group = (start + i) // unit
                places = natural[group]
                scales = kind.fit(left[start + i :][places], importance[start + i :][places])
                made[int(order[start + i]) // unit] = scales.made
                inverse = _inverse(scales.step)
            own = int(order[start + i]) % unit // scales.run
            step, low = scales.step[own], scales.low[own]
            code = ((now[i] - low) * inverse[own]).round_().clamp_(0, scales.levels - 1)
            codes[start + i] = code.numpy()
            values[start + i] = code.mul_(step).add_(low)
            errors[i] = (now[i] - values[start + i]) / factor[start + i, start + i]
            if i + 1 < stop - start:
                now[i + 1 :].addr_(factor[start + i, start + i + 1 : stop], errors[i], alpha=-1)
        if stop < columns:
            left[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
    back = order.argsort()
    stored = kind.store(np.ascontiguousarray(codes[back.numpy()].T), made)
    return Solved(values[back].T.contiguous(), stored, damp)


def _spans(columns: int, unit: int) -> Iterator[tuple[int, int]]:
    """What is done at a time: some whole units, or a part of a large one."""
    width = max(LAZY // unit, 1) * unit
    for first in range(0, columns, width):
        last = min(first + width, columns)
        for start in range(first, last, LAZY):
            yield start, min(start + LAZY, last)


def _order(diagonal: Any, unit: int) -> Any:
    """Groups by their largest diagonal element, the columns in each likewise."""
    import torch

    groups = diagonal.view(-1, unit)
    first = groups.amax(1).argsort(stable=True, descending=True)
    within = groups.argsort(dim=1, descending=True, stable=True)
    return (torch.arange(len(groups))[:, None] * unit + within)[first].reshape(-1)


def _factor(hessian: Any, damp: float) -> tuple[Any, float]:
    """The upper Cholesky factor of the inverse, and the damping that it took."""
    import torch

    mean = hessian.diagonal().mean()
    for attempt in range(TRIES):
        wanted = damp * 10**attempt
        damped = hessian.clone()
        damped.diagonal().add_(wanted * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            inverse = torch.cholesky_inverse(lower)
            factor, failed = torch.linalg.cholesky_ex(inverse, upper=True)
        if not failed and torch.isfinite(factor).all():
            return factor, wanted
    raise ProofError("the Hessian of a layer cannot be inverted", "more or other --calibration")


@dataclass(frozen=True)
class Uniform:
    """GPTQ's own: a half-precision scale per group, and a zero where it is not symmetric."""

    bits: int
    columns: int
    symmetric: bool

    def fit(self, values: Any, importance: Any) -> Scales:
        import torch

        levels = 2**self.bits
        search = _symmetric if self.symmetric else _asymmetric
        best = search(values, importance[:, None], levels)
        step, zero = best.checked(), best.zero
        made = step.half().numpy(), zero.to(torch.uint8).numpy()
        return Scales(step[None], (-zero * step)[None], values.shape[0], levels, made)

    def store(self, codes: npt.NDArray[np.uint8], made: list[Any]) -> Arrays:
        scales, zeros = (np.stack(column, axis=1) for column in zip(*made, strict=True))
        return {"codes": codes, "scales": scales, "zeros": zeros}

    def coded(self, stored: Arrays) -> gptq_layout.Codes:
        codes, scales, zeros = stored["codes"], stored["scales"], stored["zeros"]
        columns = codes.shape[1]
        groups = np.arange(columns, dtype=np.int32) // (columns // scales.shape[1])
        return gptq_layout.Codes(codes, scales, zeros, groups, self.bits)

    def values(self, stored: Arrays) -> npt.NDArray[np.float32]:
        return self.coded(stored).values()


@dataclass(frozen=True)
class Ggml:
    """A type of ggml's. Where a block has one scale it is searched for as in `Uniform`; the scales
    of the K-quants, which are codes themselves, are those that ggml's kernel finds."""

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
        """A block for each row, with its scales; the codes do not matter yet."""
        import torch

        if self.qtype.name in ONE_SCALE:
            from gguf import GGML_QUANT_SIZES

            best = _symmetric(values, importance[:, None], ONE_SCALE[self.qtype.name])
            data = np.zeros((values.shape[1], GGML_QUANT_SIZES[self.qtype][1]), np.uint8)
            data[:, :2] = best.checked().half().numpy()[:, None].view(np.uint8)
            return data
        rows = values.T.contiguous().numpy()
        weights = (importance / importance.mean()).numpy()
        try:
            return ggml.quantize(rows, self.qtype, torch.get_num_threads(), weights)
        except ValueError as error:
            raise ProofError(str(error)) from None

    def store(self, codes: npt.NDArray[np.uint8], made: list[Any]) -> Arrays:
        return {"data": ggml_blocks.with_codes(np.concatenate(made, axis=1), codes, self.qtype)}

    def values(self, stored: Arrays) -> npt.NDArray[np.float32]:
        data = stored["data"]
        grid, codes = ggml_blocks.grid_of(data, self.qtype), ggml_blocks.codes_of(data, self.qtype)
        return ggml_blocks.values(grid, codes)


class _Best:
    """Of several scales for the columns of a group the one that costs each row the least."""

    def __init__(self, values: Any, importance: Any, levels: int) -> None:
        import torch

        self.values, self.importance, self.levels = values, importance, levels
        self.cost = torch.full_like(values[0], torch.inf)
        self.step = torch.zeros_like(values[0])
        self.zero = torch.full_like(values[0], levels // 2)

    def codes(self, step: Any, zero: Any) -> Any:
        """What the values become with it, as multiples of the step."""
        rounded = (self.values * _inverse(step)).round_()
        return rounded.clamp_(-zero, self.levels - 1 - zero)

    def attempt(self, step: Any, zero: Any) -> None:
        import torch

        error = self.codes(step, zero).mul_(step).sub_(self.values)
        cost = error.square_().mul_(self.importance).sum(0)
        better = cost < self.cost
        self.cost = torch.where(better, cost, self.cost)
        self.step = torch.where(better, step, self.step)
        self.zero = torch.where(better, zero, self.zero)

    def checked(self) -> Any:
        """The best step, if there is one."""
        import torch

        if not torch.isfinite(self.cost).all():
            raise ProofError("a weight is too large for a scale in half precision")
        return self.step

    def refine(self, rounded: Any) -> None:
        """The step that fits the codes of the best one so far (least squares)."""
        import torch

        self.checked()
        for _ in range(REFINED):
            codes = self.codes(self.step, self.zero)
            size = (codes * codes * self.importance).sum(0)
            along = (codes * self.values * self.importance).sum(0)
            self.attempt(rounded(torch.where(size > 0, along / size, self.step)), self.zero)


def _symmetric(values: Any, importance: Any, levels: int) -> _Best:
    """The step is negative where the largest value is positive, as the codes reach one step further
    below zero than above."""
    best = _Best(values, importance, levels)
    extreme = values.gather(0, values.abs().argmax(0, keepdim=True))[0]
    for share in _shares(levels):
        best.attempt(_half(extreme * (share / -(levels // 2))), best.zero)
    best.refine(_half)
    return best


def _asymmetric(values: Any, importance: Any, levels: int) -> _Best:
    """The zero is one of the codes but the first, which the file format cannot hold as a zero."""
    best = _Best(values, importance, levels)
    low, high = values.amin(0).clamp_max(0), values.amax(0).clamp_min(0)

    def rounded(step: Any) -> Any:
        return _half(step if levels > 16 else _short(step, 12 - levels.bit_length()))

    for share in _shares(levels):
        step = rounded((high - low) * (share / (levels - 1)))
        zero = (-low * share * _inverse(step)).round_().clamp_(1, levels - 1)
        best.attempt(step, zero)
    best.refine(rounded)
    return best


def _shares(levels: int) -> npt.NDArray[np.float64]:
    return np.linspace(*(SHARES if levels > 8 else COARSE))


def _inverse(step: Any) -> Any:
    """0 where the step is: nothing but zero is a multiple of it."""
    return (1 / step).masked_fill_(step == 0, 0)


def _half(step: Any) -> Any:
    """As it will be stored."""
    return step.half().float()


def _short(step: Any, bits: int) -> Any:
    """Rounded to so many significant bits, so that step * zero is a half-precision number, too: then
    ggml's types with a minimum hold the same values."""
    import torch

    mantissa, exponent = torch.frexp(step)
    return torch.ldexp((mantissa * 2**bits).round_(), exponent - bits)
