"""How much of the fine-tune's gain over its base is left in the artifact.

    kept = retention(base, fine_tuned, artifact)      # per-item scores in the same order
    kept.value, kept.low, kept.high, kept.kept        # .98, .94, 1.02, True

R = (artifact - base) / (fine-tuned - base), with Fieller's interval of a ratio of paired means
(E. C. Fieller, JRSS B 16:175-185, 1954), never narrower than Tango's interval of the artifact's
difference over the gain: where no item changed, Fieller's has no width however few the items were.
Where the base is not measurably worse than the fine-tune there is no gain to retain, and no ratio.

Whether at least a share rho of the gain is left needs no ratio: with d = artifact - rho * fine-tuned
- (1 - rho) * base per item, a one-sided test of E[d] > 0 by the studentized
bootstrap (preservation of effect; FDA, Non-Inferiority
Clinical Trials, 2016).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgeft.benchmarks.options import MIN_RETENTION
from edgeft.benchmarks.statistics.graded import FLAT, bounds
from edgeft.benchmarks.statistics.noninferiority import (
    ALPHA,
    Paired,
    lower_bound,
    mid_p,
    upper_bound,
)

Z = 1.959964


@dataclass(frozen=True)
class Retention:
    gain: float
    """of the fine-tune over its base, as a fraction of the items"""
    gain_p: float
    """mid-p McNemar of "no gain" """
    rho: float
    kept: bool | None
    """proven that at least `rho` of the gain is left; None = there is no measurable gain"""
    value: float | None = None
    """R"""
    low: float | None = None
    high: float | None = None
    """at 95 %; None = unbounded"""

    @property
    def text(self) -> str:
        if self.value is None:
            return "no measurable fine-tune effect: the base answers as well"
        low, high = (
            f"{bound:.0%}" if bound is not None else "?" for bound in (self.low, self.high)
        )
        proven = "proven" if self.kept else "not proven"
        return f"{self.value:.1%} of the gain is left ({low} to {high}); at least {self.rho:.0%}: {proven}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"text": self.text}


def retention(
    base: Sequence[float],
    full: Sequence[float],
    artifact: Sequence[float],
    rho: float = MIN_RETENTION,
) -> Retention:
    """From right (1) and wrong (0) per item."""
    b, f, q = (np.asarray(values, np.float64) for values in (base, full, artifact))
    gain = float(f.mean() - b.mean())
    p = mid_p(Paired.count(base, full))
    if gain <= 0 or p >= ALPHA:
        return Retention(gain, p, rho, None)
    low, high = _fieller(q - b, f - b)
    change = Paired.count(full, artifact)
    if low is not None:
        low = min(low, 1 + lower_bound(change, Z) / gain)
    if high is not None:
        high = max(high, 1 + upper_bound(change, Z) / gain)
    d = q - rho * f - (1 - rho) * b
    # A rare lost item weighs nine times a kept one: too skewed for a plain t test (error rate .08).
    kept = len(d) > 1 and bounds(d)[0] > 0
    if np.ptp(d) < FLAT:  # nothing changed: then all rests on the number of items
        kept = 1 + lower_bound(change) / gain > rho
    return Retention(gain, p, rho, kept, float((q - b).mean()) / gain, low, high)


def _fieller(y: np.ndarray[Any, Any], x: np.ndarray[Any, Any]) -> tuple[float | None, float | None]:
    """95 % bounds of mean(y) / mean(x), None where the denominator may be zero."""
    (yy, xy), (_, xx) = np.cov(y, x) / len(x) if len(x) > 1 else np.zeros((2, 2))
    my, mx = float(y.mean()), float(x.mean())
    a, b, c = mx**2 - Z**2 * xx, my * mx - Z**2 * xy, my**2 - Z**2 * yy
    if a <= 0:
        return None, None
    root = math.sqrt(max(0.0, b * b - a * c))
    return float(b - root) / a, float(b + root) / a
