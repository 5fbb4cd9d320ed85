"""Scores of a base, its fine-tune and an artifact -> the share of the fine-tune's gain that is left.

    result = measure_retention(base, fine_tuned, artifact)    # per-item scores in the same order
    result.value, result.low, result.high, result.retained    # .98, .94, 1.02, True

R = (artifact - base) / (fine-tuned - base), with Fieller's interval of a ratio of paired means
(E. C. Fieller, JRSS B 16:175-185, 1954). The interval is never narrower than Tango's interval of the
artifact's difference divided by the gain: where no item changed, Fieller's interval has no width no
matter how few the items are. If the base is not measurably worse than the fine-tune, there is no
gain to retain and no ratio.

The test "at least a share rho of the gain is left" needs no ratio: with d = artifact - rho *
fine-tuned - (1 - rho) * base per item, it is a one-sided test of E[d] > 0 by the studentized bootstrap
(preservation of effect; FDA, Non-Inferiority Clinical Trials, 2016).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeft.benchmarks.options import MIN_RETENTION
from edgeft.benchmarks.statistics.graded import ZERO_SPREAD, bootstrap_bounds
from edgeft.benchmarks.statistics.noninferiority import (
    ALPHA,
    Paired,
    lower_bound,
    mid_p,
    upper_bound,
)

Z = 1.959964
"""normal quantile of a two-sided 95 % interval"""


@dataclass(frozen=True)
class Retention:
    gain: float
    """accuracy of the fine-tune minus that of its base, as a fraction"""
    gain_p: float
    """mid-p McNemar p value of "no gain" """
    rho: float
    retained: bool | None
    """whether at least `rho` of the gain is proven to be left; None = there is no measurable gain"""
    value: float | None = None
    """R"""
    low: float | None = None
    high: float | None = None
    """95 % bounds of R; None = unbounded"""


def measure_retention(
    base: Sequence[float],
    fine_tuned: Sequence[float],
    artifact: Sequence[float],
    rho: float = MIN_RETENTION,
) -> Retention:
    """The three sequences hold 1 (right) or 0 (wrong) for each item, in the same order."""
    b, f, q = (np.asarray(values, np.float64) for values in (base, fine_tuned, artifact))
    gain = float(f.mean() - b.mean())
    p = mid_p(Paired.count(base, fine_tuned))
    if gain <= 0 or p >= ALPHA:
        return Retention(gain, p, rho, None)
    low, high = fieller_interval(q - b, f - b)
    change = Paired.count(fine_tuned, artifact)
    if low is not None:
        low = min(low, 1 + lower_bound(change, Z) / gain)
    if high is not None:
        high = max(high, 1 + upper_bound(change, Z) / gain)
    d = q - rho * f - (1 - rho) * b
    # A lost item weighs nine times a kept one, which is too skewed for a t test (error rate .08).
    retained = len(d) > 1 and bootstrap_bounds(d)[0] > 0
    if np.ptp(d) < ZERO_SPREAD:  # nothing changed, so only the number of items counts
        retained = 1 + lower_bound(change) / gain > rho
    return Retention(gain, p, rho, retained, float((q - b).mean()) / gain, low, high)


def fieller_interval(
    y: np.ndarray[Any, Any], x: np.ndarray[Any, Any]
) -> tuple[float | None, float | None]:
    """95 % bounds of mean(y) / mean(x) for paired y and x; None where mean(x) may be zero."""
    (yy, xy), (_, xx) = np.cov(y, x) / len(x) if len(x) > 1 else np.zeros((2, 2))
    my, mx = float(y.mean()), float(x.mean())
    a, b, c = mx**2 - Z**2 * xx, my * mx - Z**2 * xy, my**2 - Z**2 * yy
    if a <= 0:
        return None, None
    root = math.sqrt(max(0.0, b * b - a * c))
    return float(b - root) / a, float(b + root) / a
