"""The landing proof: did the adapter's change arrive in the artifact?"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft.weights.checkpoint import Array, Rows

Reader = Callable[[str, Rows], Array]
"""(tensor, rows) -> values"""
Take = Callable[[Reader], Array]
"""a converter's way from a reader of the base's tensors to the rows of its own"""

SAMPLE = 1 << 16
"""elements of a tensor that beta is computed on (evenly spaced rows)"""

LEAST = 4
"""rows of every tensor that beta is computed on at least"""
EXACT = 1e-3
"""how far beta of the float32 sum may be from 1"""
FAITHFUL = 0.25
"""how far beta of what the type kept may be from 1 before the user is told"""
ZERO = 1e-6
"""a change of this share of the weights is none: float32 rounds as much away"""
LOST, TWICE = 0.25, 1.75
"""bounds of beta of what the type kept"""


@dataclass(frozen=True)
class Proof:
    """How the adapter arrived in the artifact."""

    tensors: int
    """adapted tensors, all of them measured"""
    beta: float
    """landing coefficient of what the output type kept, over all tensors"""
    beta_min: float
    beta_max: float
    delta: float
    """rms of the delta over rms of the weights it was added to; 1 where those are zero"""
    noise: float
    """rms of the quantization error over rms of the delta"""
    merge_base: str
    replaced: int = 0
    """tensors that the adapter holds whole, or rows of"""

    def __str__(self) -> str:
        if not self.tensors and self.replaced:
            return f"replaced: {self.replaced} tensors that the adapter holds whole"
        if not self.tensors:
            return "no adapter: the base model as it is"
        return (
            f"landed: {self.tensors} of {self.tensors} tensors, beta {self.beta:.3f} "
            f"({self.beta_min:.3f} to {self.beta_max:.3f}), delta {self.delta:.2%} of the weights, "
            f"rounding {self.noise:.2f} of the delta, merged into {self.merge_base}"
        )

    @property
    def faithful(self) -> bool:
        """The type keeps the adapter's size; otherwise a finer one is worth a try."""
        return abs(self.beta - 1) <= FAITHFUL


def sampled(rows: int, width: int, share: int = 1) -> npt.NDArray[np.intp]:
    """The rows that the landing proof looks at, of a tensor that `share` of its kind make up."""
    count = min(rows, max(LEAST, SAMPLE // share // width))
    return np.unique(np.linspace(0, rows - 1, count).astype(np.intp))


def to_json(proof: Proof) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(json.dumps(vars(proof)))
    return raw
