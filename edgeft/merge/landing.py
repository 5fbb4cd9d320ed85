"""Sampled rows of every tensor -> the landing proof: did the adapter arrive in the artifact?

    landing = LandingProof(merged)
    before, delta = merged.addends(name, rows)              # W and s·B·A of the sampled rows
    landing.add(name, before, delta, summed, stored)        # the sum, and its values after quantization
    print(landing.result())                                 # ProofError where the adapter is lost

The landing coefficient of a tensor is beta = <W' - W, sBA> / |sBA|^2: 1 = landed, 0 = lost,
2 = merged twice. Beta is computed twice on sampled rows. Before quantization it must be 1 for every
tensor. After quantization a coarse type may shrink or amplify the change, above all where W already
lies on a grid (NF4 values). The export then prints a note. ProofError is raised where beta over all
tensors cannot be distinguished from 0 or 2. A tensor without a delta must hold the base's values.

The proof shows that the adapter's change went through the merge into the file. Whether the change
itself has the right scale and tensor is checked by comparing the file's logits with those of the live
adapter (`edgeft.export.verify`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft.errors import ProofError
from edgeft.merge.base_weights import BasePrecision
from edgeft.merge.view import Merged
from edgeft.weights.checkpoint import Array

SAMPLE_VALUES = 1 << 16
"""values of a tensor in the sample, in evenly spaced rows"""
MIN_SAMPLE_ROWS = 4
"""rows of a tensor in the sample at least"""
SUM_TOLERANCE = 1e-3
"""largest |beta - 1| of the float32 sum that passes"""
FAITHFUL_TOLERANCE = 0.25
"""largest |beta - 1| of the stored values without a note to the user"""
ZERO_DELTA_RATIO = 1e-6
"""rms of a delta over rms of the weights, up to which it counts as zero: float32 rounding is as large"""
MIN_BETA, MAX_BETA = 0.25, 1.75
"""bounds of beta of the stored values over all tensors: 0 is a lost adapter, 2 one merged twice"""


@dataclass(frozen=True)
class Proof:
    """The landing coefficients of an artifact."""

    tensors: int
    """number of adapted tensors"""
    beta: float
    """landing coefficient of the stored values, over all tensors"""
    beta_min: float
    """smallest beta of a tensor"""
    beta_max: float
    """largest beta of a tensor"""
    delta: float
    """rms of the delta over rms of the adapted weights; 1 where those are zero"""
    noise: float
    """rms of the quantization error over rms of the delta"""
    base_precision: BasePrecision
    """values that the delta was added to"""
    replaced: int = 0
    """tensors of which the adapter holds all values or some rows"""

    def __str__(self) -> str:
        if not self.tensors and self.replaced:
            return f"replaced: {self.replaced} tensors that the adapter holds whole"
        if not self.tensors:
            return "no adapter: the base model unchanged"
        return (
            f"landed: {self.tensors} of {self.tensors} tensors, beta {self.beta:.3f} "
            f"({self.beta_min:.3f} to {self.beta_max:.3f}), delta {self.delta:.2%} of the weights, "
            f"rounding {self.noise:.2f} of the delta, merged into {self.base_precision}"
        )

    @property
    def faithful(self) -> bool:
        """Whether the type keeps the size of the adapter's change; otherwise try a finer type."""
        return abs(self.beta - 1) <= FAITHFUL_TOLERANCE

    def to_json(self) -> dict[str, Any]:
        """For a manifest."""
        return dict(vars(self))


class LandingProof:
    """Collects sampled rows while a converter writes; one object per artifact."""

    def __init__(self, merged: Merged) -> None:
        self._merged = merged
        self._sums: dict[str, npt.NDArray[np.float64]] = {}
        """tensor -> <d, d>, <w, w>, <summed - w, d>, <stored - w, d>, |stored - summed|^2, where w
        are the base's values and d is the delta"""

    def add(
        self, name: str, before: Array, delta: Array | None, summed: Array, stored: Array
    ) -> None:
        """Record sampled rows of one tensor, all of one shape, float32.

        `before`, `delta`: `Merged.addends` of the rows. `summed`: their float32 sum. `stored`: the
        sum after quantization. ProofError where the rows of a tensor without a delta are not the
        base's.
        """
        if delta is None:
            if not np.array_equal(summed, before):
                raise ProofError(f"{name} is not the base's, and no adapter changed it")
            return
        pairs = (
            (delta, delta),
            (before, before),
            (summed - before, delta),
            (stored - before, delta),
            (stored - summed, stored - summed),
        )
        sums = np.array([np.vdot(x, y) for x, y in pairs], np.float64)
        self._sums[name] = self._sums.get(name, 0) + sums

    def result(self) -> Proof:
        """The proof over all recorded tensors.

        ProofError where an adapted tensor was not recorded, the adapter is zero everywhere, or its
        change was lost or added twice.
        """
        merged = self._merged
        missing = [n for n in merged.shapes if merged.adapted(n) and n not in self._sums]
        if missing:
            raise ProofError(f"{len(missing)} adapted tensors were not written: {missing[0]}, …")
        # A zero delta has no landing coefficient.
        nonzero = {n: s for n, s in self._sums.items() if s[0] > ZERO_DELTA_RATIO**2 * s[1]}
        if self._sums and not nonzero and not merged.replaced:
            raise ProofError(
                "the adapter is zero everywhere: the result would be the base model",
                "train it, or export the base without --adapter",
            )
        if not nonzero:
            return Proof(0, 1.0, 1.0, 1.0, 0.0, 0.0, merged.base_precision, merged.replaced)
        self._check_sums(nonzero)
        delta, weight, _, stored, error = np.sum(list(self._sums.values()), axis=0)
        betas = [float(sums[3] / sums[0]) for sums in nonzero.values()]
        proof = Proof(
            tensors=len(self._sums),
            beta=float(stored / delta),
            beta_min=min(betas),
            beta_max=max(betas),
            delta=float(np.sqrt(delta / weight)) if weight else 1.0,
            noise=float(np.sqrt(error / delta)),
            base_precision=merged.base_precision,
            replaced=merged.replaced,
        )
        self.check_stored(proof)
        return proof

    def check_stored(self, proof: Proof) -> None:
        """ProofError where the stored values' beta cannot be told from 0 or 2."""
        if not MIN_BETA < proof.beta < MAX_BETA:
            raise ProofError(
                f"the adapter did not land: of its {proof.delta:.2%} change this type keeps "
                f"beta {proof.beta:.3f} (1 = landed, 0 = lost, 2 = twice)",
                "a finer --quant",
            )

    @staticmethod
    def _check_sums(nonzero: dict[str, npt.NDArray[np.float64]]) -> None:
        for name, sums in nonzero.items():
            beta = sums[2] / sums[0]
            if abs(beta - 1) > SUM_TOLERANCE:
                raise ProofError(
                    f"the adapter did not land in {name}: beta {beta:.3f} "
                    "(1 = landed, 0 = lost, 2 = twice)",
                    "this is a defect of the merge, not of your input",
                )


def sampled_rows(rows: int, columns: int, parts: int = 1) -> npt.NDArray[np.intp]:
    """Row numbers of the sample of a matrix, where `parts` such matrices share a tensor."""
    count = min(rows, max(MIN_SAMPLE_ROWS, SAMPLE_VALUES // parts // columns))
    return np.unique(np.linspace(0, rows - 1, count).astype(np.intp))
