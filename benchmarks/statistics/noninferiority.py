"""Two models' right and wrong answers on the same items -> a Verdict: is one at most `margin` worse?

    paired = Paired.count(baseline=[True] * 400, candidate=[True] * 398 + [False] * 2)
    verdict = judge(paired)
    verdict.outcome, verdict.lower               # PASS, the lower bound of the difference
    raise SystemExit(verdict.exit_code)          # 0 PASS, 3 FAIL, 4 INCONCLUSIVE

Only the items on which the models disagree carry information, so the comparison is paired. The
question is non-inferiority ("is it proven to be at most M worse?"), not "is there a significant
difference?", which a small sample would always answer with a comforting no. The margin M is a
fraction (0.05 is 5 points) that is chosen before the run.

Sources: score test and interval, T. Tango, Statistics in Medicine 17:891-908 (1998); mid-p
McNemar, M. Fagerland, S. Lydersen and P. Laake, BMC Medical Research Methodology 13:91 (2013);
interval of a single proportion, E. B. Wilson, JASA 22:209-212 (1927).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from edgeft.records import EXIT_CODES

Outcome = Literal["PASS", "FAIL", "INCONCLUSIVE"]

ALPHA = 0.05
"""largest one-sided error rate of a PASS"""

# Not 1.645: with few flips the score test is liberal, and at the boundary its exact error reaches
# .069 (n = 52, M = 5 points, no wins). With 1.751 the worst exact sum found for M of 1 to 5
# points is .0485 while at most half the items flip (.0512 if every single item flips).
PASS_Z = 1.751
# The upper tail is more skewed than the lower one: 1.645 would fail a good model up to 9.6 % of the
# time (n = 62, M = 5 points), 2.05 at most 4.4 % in exact sums for 1 to 5 points.
FAIL_Z = 2.05

_POWER_Z = {0.8: 0.8416, 0.9: 1.2816}
"""power -> its normal quantile"""
_EXACT_BINOMIAL_LIMIT = 1000
"""flips up to which mid_p adds whole numbers; above, logarithms"""


class Ground(StrEnum):
    """Why a verdict came out as it did."""

    NOTHING_TO_LOSE = "nothing to lose"
    """the baseline scores no more than the margin, so no loss can show"""
    WITHIN_MARGIN = "within margin"
    """a loss of the margin is ruled out"""
    BEYOND_MARGIN = "beyond margin"
    """a loss of the margin or more was seen and is not chance"""
    TOO_FEW_ITEMS = "too few items"
    """even an unchanged candidate could not pass on so few items"""
    UNDECIDED = "undecided"
    """the items allow both"""

    @property
    def outcome(self) -> Outcome:
        if self is Ground.WITHIN_MARGIN:
            return "PASS"
        return "FAIL" if self is Ground.BEYOND_MARGIN else "INCONCLUSIVE"


def worst_outcome(outcomes: Iterable[str]) -> Outcome:
    """The outcome of tests that must all pass; PASS where there are none."""
    seen = set(outcomes)
    if "FAIL" in seen:
        return "FAIL"
    return "INCONCLUSIVE" if "INCONCLUSIVE" in seen else "PASS"


@dataclass(frozen=True)
class Paired:
    """The four cells of a paired comparison of two models on the same items."""

    n: int
    both: int
    """items that both models answer right"""
    lost: int
    """baseline right, candidate wrong (b in the literature)"""
    won: int
    """baseline wrong, candidate right (c)"""
    neither: int
    """items that both models answer wrong"""

    def __post_init__(self) -> None:
        cells = (self.both, self.lost, self.won, self.neither)
        if min(cells) < 0:
            raise ValueError(f"cell counts cannot be negative: {cells}")
        if self.n < 1:
            raise ValueError("a paired comparison needs at least one item")
        if sum(cells) != self.n:
            raise ValueError(f"the cells {cells} add up to {sum(cells)}, not to n = {self.n}")

    @classmethod
    def count(cls, baseline: Sequence[float], candidate: Sequence[float]) -> Paired:
        """Count the cells of two score sequences in the same order: True or 1 is right, False or 0 wrong.

        ValueError where the lengths differ or there is no item.
        """
        if len(baseline) != len(candidate):
            raise ValueError(
                f"the models were scored on different numbers of items: "
                f"baseline {len(baseline)}, candidate {len(candidate)}"
            )
        both = lost = won = neither = 0
        for before, after in zip(baseline, candidate, strict=True):
            if before and after:
                both += 1
            elif before:
                lost += 1
            elif after:
                won += 1
            else:
                neither += 1
        return cls(len(baseline), both, lost, won, neither)

    @property
    def difference(self) -> float:
        """D = (c - b) / n, the candidate's accuracy minus the baseline's."""
        return (self.won - self.lost) / self.n

    @property
    def flip_rate(self) -> float:
        """psi = (b + c) / n, the share of items whose score changed either way."""
        return (self.lost + self.won) / self.n


def tango_z(p: Paired, d: float) -> float:
    """Score statistic for the hypothesis "true difference = d" (Tango 1998).

    With x = won and y = lost, q is the maximum-likelihood probability of a lost item under the
    constraint P(won) - P(lost) = d, the larger root of A q^2 + B q + C = 0 with A = 2n,
    B = -x - y + (2n - x + y) d, C = -y d (1 - d), and
    z = (x - y - n d) / sqrt(n (2 q + d (1 - d))).

    Falls as d grows.  Where the constrained variance is zero the result is 0 if the data fit d
    exactly and an infinity of the right sign if they contradict it.
    """
    if not -1.0 <= d <= 1.0:
        raise ValueError(f"a difference of two proportions lies in [-1, 1], not {d}")
    if d < 0.0:
        # Swapping the arms is an exact identity, and for d >= 0 every term below is a sum of
        # same-signed parts, so nothing cancels.
        return -_tango_z_nonnegative(p.n, p.lost, p.won, -d)
    return _tango_z_nonnegative(p.n, p.won, p.lost, d)


def _tango_z_nonnegative(n: int, x: int, y: int, d: float) -> float:
    numerator = x - y - n * d
    variance = _constrained_variance(n, x, y, d)
    if variance > 0.0:
        return numerator / math.sqrt(variance)
    return math.copysign(math.inf, numerator) if numerator else 0.0


def _constrained_variance(n: float, x: float, y: float, d: float) -> float:
    """Variance of x - y under the constraint that the true difference is d >= 0."""
    a = 2.0 * n
    b = -x - y + (2 * n - x + y) * d
    c = -y * d * (1.0 - d)
    root = math.sqrt(max(0.0, b * b - 4.0 * a * c))
    if b > 0.0:
        # The textbook form (root - b) / 2a would subtract two nearly equal numbers here.
        q = -2.0 * c / (b + root)
    else:
        q = (root - b) / (2.0 * a)
    return n * (2.0 * q + d * (1.0 - d))


def lower_bound(p: Paired, z: float = PASS_Z) -> float:
    """Lower confidence bound of the difference: the d at which tango_z falls to ``z``.

    The result is never above the exact root, so "lower bound > -M" implies that the test passes.
    """
    _check_z(z)
    return _bisect(lambda d: tango_z(p, d) >= z, -1.0, p.difference)[0]


def upper_bound(p: Paired, z: float = FAIL_Z) -> float:
    """Upper confidence bound of the difference: the d at which tango_z falls to ``-z``."""
    _check_z(z)
    return _bisect(lambda d: tango_z(p, d) > -z, p.difference, 1.0)[1]


def _bisect(holds: Callable[[float], bool], low: float, high: float) -> tuple[float, float]:
    """Narrow [low, high] to the point where ``holds`` turns from true (left) to false (right)."""
    # Far finer than anybody needs, so that a bound and the test agree on borderline counts.
    while high - low > 1e-15:
        middle = (low + high) / 2.0
        if not low < middle < high:
            break
        if holds(middle):
            low = middle
        else:
            high = middle
    return low, high


def mid_p(p: Paired) -> float:
    """Two-sided mid-p McNemar test of "no difference" (Fagerland, Lydersen and Laake 2013).

    2 [P(X < k) + P(X = k) / 2] with X ~ Bin(b + c, 1/2) and k = min(b, c), capped at 1.
    """
    flips = p.lost + p.won
    k = min(p.lost, p.won)
    if flips <= _EXACT_BINOMIAL_LIMIT:
        term = math.comb(flips, k)
        # The centre counts half and both tails count: centre + 2 * tail, exact up to the division.
        doubled = term
        for i in range(k, 0, -1):
            term = term * i // (flips - i + 1)
            doubled += 2 * term
        return min(1.0, doubled / (1 << flips))
    log_centre = math.lgamma(flips + 1) - math.lgamma(k + 1) - math.lgamma(flips - k + 1)
    relative = 1.0
    total = 1.0
    for i in range(k, 0, -1):
        relative *= i / (flips - i + 1)
        total += 2.0 * relative
        if relative < 1e-18 * total:
            break
    log_p = log_centre - flips * math.log(2.0) + math.log(total)
    return min(1.0, math.exp(log_p))


def wilson(k: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """(low, high) of Wilson's score interval of the proportion k / n (1927)."""
    if n < 1 or not 0 <= k <= n:
        raise ValueError(f"need 0 <= k <= n and n >= 1, got k = {k}, n = {n}")
    _check_z(z)
    share = k / n
    square = z * z
    centre = share + square / (2 * n)
    half = z * math.sqrt(share * (1.0 - share) / n + square / (4.0 * n * n))
    scale = 1.0 + square / n
    # At the ends the bound is 0 or 1 exactly; the subtraction would leave rounding dust.
    low = 0.0 if k == 0 else (centre - half) / scale
    high = 1.0 if k == n else (centre + half) / scale
    return low, high


def default_margin(n: int) -> float:
    """The margin where the user chose none: 5 points below 400 items, 3 below 1500, else 2."""
    if n < 1:
        raise ValueError(f"need at least one item, got {n}")
    if n < 400:
        return 0.05
    return 0.03 if n < 1500 else 0.02


def minimum_items(margin: float) -> int:
    """Smallest number of items on which a candidate that changes no answer passes."""
    _check_margin(margin)

    def passes(n: int) -> bool:
        return tango_z(Paired(n, n, 0, 0, 0), -margin) > PASS_Z

    high = 1
    while not passes(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        if passes(middle):
            high = middle
        else:
            low = middle
    return high


def items_needed(psi: float, margin: float, power: float = 0.8) -> int:
    """About how many items an equally good candidate with flip rate ``psi`` needs to pass.

    n = ((1.751 sqrt(v) + z_power sqrt(psi)) / M)^2. v is the variance of one item that the test
    assumes under the constraint of a loss of M; with few flips it is far larger than psi. The
    result is never below `minimum_items`.
    """
    if not 0.0 <= psi <= 1.0:
        raise ValueError(f"a flip rate lies in [0, 1], not {psi}")
    if power not in _POWER_Z:
        raise ValueError(f"power must be one of {sorted(_POWER_Z)}, not {power}")
    minimum = minimum_items(margin)
    v = _constrained_variance(1, psi / 2, psi / 2, margin)
    root = (PASS_Z * math.sqrt(v) + _POWER_Z[power] * math.sqrt(psi)) / margin
    return max(minimum, math.ceil(root**2))


@dataclass(frozen=True)
class Verdict:
    """A decision with the figures behind it; rates are fractions, not points."""

    outcome: Outcome
    ground: Ground
    graded: bool
    """whether scores lie between right and wrong (`edgeft.benchmarks.statistics.graded`)"""
    baseline_score: float
    """mean score of the baseline"""
    n: int
    lost: int
    won: int
    flip_rate: float
    difference: float
    """mean score of the candidate minus that of the baseline"""
    lower: float | None
    upper: float | None
    """bounds of the difference; None after an early stop, for which one-look bounds do not hold"""
    margin: float
    alpha: float
    mid_p: float
    items_needed: int | None
    """about how many items would decide an INCONCLUSIVE run; else None"""

    @property
    def exit_code(self) -> int:
        """Process exit status: 0 PASS, 3 FAIL, 4 INCONCLUSIVE."""
        return EXIT_CODES[self.outcome]


def judge(p: Paired, margin: float | None = None) -> Verdict:
    """Apply the gate: is the candidate proven to be less than ``margin`` worse?

    PASS needs the lower bound above -margin on at least `minimum_items` items; on fewer items a
    lucky win or two would pass more often than ``ALPHA`` allows. FAIL needs the upper bound below
    -margin, or a loss of at least the margin that mid-p McNemar calls significant. Everything else
    is INCONCLUSIVE, which is not a PASS. The error rate ``ALPHA`` was checked by exact sums for
    margins up to 5 points; wider margins can exceed it slightly (.056 at 10 points).
    """
    chosen = default_margin(p.n) if margin is None else margin
    _check_margin(chosen)
    minimum = minimum_items(chosen)
    lower, upper, significance = lower_bound(p), upper_bound(p), mid_p(p)
    score = (p.both + p.lost) / p.n
    needed: int | None = None
    if has_nothing_to_lose(score, chosen, lower):
        ground = Ground.NOTHING_TO_LOSE
    elif lower > -chosen and p.n >= minimum:
        ground = Ground.WITHIN_MARGIN
    # The slack keeps a margin such as 0.1 * 3 from escaping a loss of 0.3 by its last bit.
    elif upper < -chosen or (p.difference <= -chosen + 1e-12 and significance < ALPHA):
        ground = Ground.BEYOND_MARGIN
    else:
        ground = Ground.TOO_FEW_ITEMS if p.n < minimum else Ground.UNDECIDED
        needed = _items_to_settle(p, chosen)
    return Verdict(
        outcome=ground.outcome, ground=ground, graded=False, baseline_score=score, n=p.n,
        lost=p.lost, won=p.won, flip_rate=p.flip_rate, difference=p.difference, lower=lower,
        upper=upper, margin=chosen, alpha=ALPHA, mid_p=significance, items_needed=needed,
    )  # fmt: skip


def has_nothing_to_lose(baseline_score: float, margin: float, lower: float) -> bool:
    """Whether the baseline is hardly ever right and the candidate is not proven better.

    Such a candidate cannot pass: no loss of the margin could show, and the scorer may be wrong.
    """
    return baseline_score <= margin and lower <= 0


def _items_to_settle(p: Paired, margin: float) -> int:
    """Items that an INCONCLUSIVE comparison needs for a decision; always more than it had.

    The first estimate is for an equally good candidate. If that many items were already run, the
    observed rates are taken as true: at fixed rates z grows with sqrt(n), and power .8 asks for
    z = 1.751 + .8416 on average.
    """
    needed = items_needed(p.flip_rate, margin)
    if needed > p.n:
        return needed
    # Here 0 < z <= PASS_Z: an observed loss of the margin on this many items would have been
    # significant, and so a FAIL.
    return math.ceil(p.n * (PASS_Z + _POWER_Z[0.8]) ** 2 / tango_z(p, -margin) ** 2)


def _check_margin(margin: float) -> None:
    if not 0.0 < margin < 1.0:
        raise ValueError(f"a margin is a fraction between 0 and 1 (0.05 is 5 points), not {margin}")


def _check_z(z: float) -> None:
    if not 0.0 < z < math.inf:
        raise ValueError(f"a normal quantile must be positive and finite, not {z}")
