"""The gate for scores between right and wrong, such as chrF: is the candidate at most M worse?

    verdict = judge_graded(baseline, candidate, margin=0.03)     # a Verdict like paired.judge's

The studentized bootstrap of the paired differences (Efron and Tibshirani 1993, chapter 12; B = 10,000)
bounds the mean difference; a sign-flip permutation test says whether chance explains it. Fewer than
`FEWEST` items decide nothing: the bootstrap's error rate is not kept there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft.benchmarks.statistics.noninferiority import (
    ALPHA,
    Outcome,
    Verdict,
    default_margin,
    nothing_to_lose,
)

FEWEST = 100
DRAWS = 10_000
SEED = 0
FLAT = 1e-12
"""a spread that is none but for rounding"""
LEVEL = 0.04
"""of the bounds: at .05 the error rate comes to .06 where a few items lose everything"""
Floats = npt.NDArray[np.float64]


def judge_graded(
    baseline: Sequence[float], candidate: Sequence[float], margin: float | None = None
) -> Verdict:
    """PASS, FAIL or INCONCLUSIVE on paired scores from 0 to 1; `lost` and `won` count the items whose
    score fell and rose."""
    d = np.asarray(candidate, np.float64) - np.asarray(baseline, np.float64)
    chosen = default_margin(len(d)) if margin is None else margin
    low, high = bounds(d)
    told_why = nothing_to_lose(float(np.mean(baseline)), len(d), chosen, low)
    p = sign_flip_p(d)
    mean = float(d.mean())
    lost, won = int((d < 0).sum()), int((d > 0).sum())
    told = f"{len(d)} items, mean score {100 * mean:+.2f} points (95 %: {100 * low:+.2f} or more)"
    outcome: Outcome = "INCONCLUSIVE"
    needed = None
    if len(d) < FEWEST:
        needed = FEWEST
        reason = f"{told}: fewer than {FEWEST} items decide nothing for graded scores."
    elif told_why:
        reason = told_why
    elif low > -chosen:
        outcome = "PASS"
        reason = f"{told}, inside the {100 * chosen:.4g} points allowed."
    elif high < -chosen or (mean <= -chosen and p < ALPHA):
        outcome = "FAIL"
        reason = f"{told}: beyond the {100 * chosen:.4g} points allowed (p {p:.2g})."
    else:
        needed = _needed(d, chosen)
        reason = (
            f"{told}, beyond the {100 * chosen:.4g} points allowed: about {needed} items decide."
        )
    return Verdict(
        outcome=outcome, n=len(d), lost=lost, won=won, flip_rate=(lost + won) / len(d),
        difference=mean, lower=low, upper=high, margin=chosen, alpha=ALPHA, mid_p=p,
        items_needed=needed, reason=reason,
    )  # fmt: skip


def bounds(d: Floats) -> tuple[float, float]:
    """One-sided bounds of the mean of differences from -1 to 1, by the studentized bootstrap.

    A draw in which all items are equal has a t without bound, and counts as such: there the rare large
    losses are that a bound is for. Where the differences themselves are all equal, the bounds are those
    of two items more, which changed by a whole point each way.
    """
    if np.ptp(d) < FLAT:
        d = np.append(d, (1.0, -1.0))
    n, mean, error = len(d), d.mean(), d.std(ddof=1) / np.sqrt(len(d))
    draw = np.random.default_rng(SEED)
    ts: list[Floats] = []
    for _ in range(0, DRAWS, 500):
        sample = d[draw.integers(0, n, (500, n))]
        spread = sample.std(axis=1, ddof=1) / np.sqrt(n)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = (sample.mean(axis=1) - mean) / np.where(spread > FLAT, spread, 0.0)
        ts.append(np.nan_to_num(t, nan=0.0, posinf=np.inf, neginf=-np.inf))
    every = np.concatenate(ts)
    low = np.quantile(every, 1 - LEVEL, method="higher")
    high = np.quantile(every, LEVEL, method="lower")
    return max(-1.0, float(mean - low * error)), min(1.0, float(mean - high * error))


def sign_flip_p(d: Floats) -> float:
    """Two-sided p of "as often better as worse": the signs of the differences drawn anew."""
    own = abs(d.sum())
    draw = np.random.default_rng(SEED)
    count = 0
    for _ in range(0, DRAWS, 500):
        signs: Any = draw.integers(0, 2, (500, len(d))) * 2 - 1
        count += int((abs((signs * d).sum(axis=1)) >= own - 1e-12).sum())
    return (count + 1) / (DRAWS + 1)


def _needed(d: Floats, margin: float) -> int:
    """Items for power .8 if the truth is no difference: (1.645 + .8416)^2 variance / margin^2."""
    return max(len(d) + 1, int(np.ceil(6.18 * d.var(ddof=1) / margin**2)))
