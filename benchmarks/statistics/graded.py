"""Paired scores between wrong (0) and right (1), such as chrF -> a Verdict: at most `margin` worse?

    verdict = judge_graded(baseline, candidate, margin=0.03)

The studentized bootstrap of the paired differences bounds the mean difference (Efron and Tibshirani
1993, chapter 12; 10,000 draws). A sign-flip permutation test gives the p value of "no difference".
Fewer than `MIN_ITEMS` items decide nothing, because the bootstrap's error rate is not kept there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft.benchmarks.statistics.noninferiority import (
    ALPHA,
    Ground,
    Verdict,
    default_margin,
    has_nothing_to_lose,
)

MIN_ITEMS = 100
DRAWS = 10_000
"""bootstrap samples and permutations"""
DRAWS_PER_BLOCK = 500
"""draws computed at once, to bound the memory"""
SEED = 0
ZERO_SPREAD = 1e-12
"""spreads up to this are rounding errors of 0"""
BOUND_LEVEL = 0.04
"""one-sided level of the bounds; at .05 the error rate reaches .06 where a few items lose everything"""
Floats = npt.NDArray[np.float64]


def judge_graded(
    baseline: Sequence[float], candidate: Sequence[float], margin: float | None = None
) -> Verdict:
    """PASS, FAIL or INCONCLUSIVE on paired scores from 0 to 1.

    `lost` and `won` of the verdict count the items whose score fell and rose; `mid_p` is the p value
    of the permutation test.
    """
    d = np.asarray(candidate, np.float64) - np.asarray(baseline, np.float64)
    chosen = default_margin(len(d)) if margin is None else margin
    low, high = bootstrap_bounds(d)
    score = float(np.mean(baseline))
    p = sign_flip_p(d)
    mean = float(d.mean())
    lost, won = int((d < 0).sum()), int((d > 0).sum())
    needed = None
    if len(d) < MIN_ITEMS:
        ground, needed = Ground.TOO_FEW_ITEMS, MIN_ITEMS
    elif has_nothing_to_lose(score, chosen, low):
        ground = Ground.NOTHING_TO_LOSE
    elif low > -chosen:
        ground = Ground.WITHIN_MARGIN
    elif high < -chosen or (mean <= -chosen and p < ALPHA):
        ground = Ground.BEYOND_MARGIN
    else:
        ground, needed = Ground.UNDECIDED, _items_needed(d, chosen)
    return Verdict(
        outcome=ground.outcome, ground=ground, graded=True, baseline_score=score, n=len(d),
        lost=lost, won=won, flip_rate=(lost + won) / len(d), difference=mean, lower=low, upper=high,
        margin=chosen, alpha=ALPHA, mid_p=p, items_needed=needed,
    )  # fmt: skip


def bootstrap_bounds(d: Floats) -> tuple[float, float]:
    """One-sided (lower, upper) bounds of the mean of differences d, shape (items,), from -1 to 1.

    A draw whose items are all equal has an unbounded t and is counted as infinite: the rare large
    losses that such a draw misses are exactly what the bound has to cover. If all differences are
    equal, the bounds are those of two additional items that changed by 1 and by -1.
    """
    if np.ptp(d) < ZERO_SPREAD:
        d = np.append(d, (1.0, -1.0))
    n, mean, error = len(d), d.mean(), d.std(ddof=1) / np.sqrt(len(d))
    rng = np.random.default_rng(SEED)
    blocks: list[Floats] = []
    for _ in range(0, DRAWS, DRAWS_PER_BLOCK):
        sample = d[rng.integers(0, n, (DRAWS_PER_BLOCK, n))]
        spread = sample.std(axis=1, ddof=1) / np.sqrt(n)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = (sample.mean(axis=1) - mean) / np.where(spread > ZERO_SPREAD, spread, 0.0)
        blocks.append(np.nan_to_num(t, nan=0.0, posinf=np.inf, neginf=-np.inf))
    ts = np.concatenate(blocks)
    low = np.quantile(ts, 1 - BOUND_LEVEL, method="higher")
    high = np.quantile(ts, BOUND_LEVEL, method="lower")
    return max(-1.0, float(mean - low * error)), min(1.0, float(mean - high * error))


def sign_flip_p(d: Floats) -> float:
    """Two-sided p value of "differences are symmetric around 0", by random flips of their signs."""
    observed = abs(d.sum())
    rng = np.random.default_rng(SEED)
    count = 0
    for _ in range(0, DRAWS, DRAWS_PER_BLOCK):
        signs: Any = rng.integers(0, 2, (DRAWS_PER_BLOCK, len(d))) * 2 - 1
        count += int((abs((signs * d).sum(axis=1)) >= observed - 1e-12).sum())
    return (count + 1) / (DRAWS + 1)


def _items_needed(d: Floats, margin: float) -> int:
    """Items for power .8 if there is no true difference: (1.645 + .8416)^2 variance / margin^2."""
    return max(len(d) + 1, int(np.ceil(6.18 * d.var(ddof=1) / margin**2)))
