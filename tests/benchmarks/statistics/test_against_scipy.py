"""The statistics against scipy, which shares no code with them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, stats

from edgeft.benchmarks.performance.latency import ratio_of_medians
from edgeft.benchmarks.statistics import noninferiority
from edgeft.benchmarks.statistics.graded import BOUND_LEVEL, bootstrap_bounds, sign_flip_p
from edgeft.benchmarks.statistics.noninferiority import Paired, lower_bound, mid_p, tango_z, wilson
from edgeft.benchmarks.statistics.retention import Z, fieller_interval

pytestmark = pytest.mark.unit


def paired(n: int, lost: int, won: int) -> Paired:
    return Paired(n, n - lost - won, lost, won, 0)


@pytest.mark.parametrize("n", [1, 7, 60, 400, 3000])
def test_wilson_is_scipys(n: int) -> None:
    for k in sorted({0, 1, n // 3, n // 2, n - 1, n}):
        interval = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
        assert wilson(k, n, Z) == pytest.approx((interval.low, interval.high), abs=1e-7)


@pytest.mark.parametrize("flips", [1, 2, 13, 80, 999, 1001, 5000])
def test_mid_p_is_binomtest_less_half_of_the_observed_outcomes(flips: int) -> None:
    for lost in sorted({0, 1, flips // 3, flips // 2, flips - 1, flips}):
        exact = stats.binomtest(lost, flips).pvalue
        observed = stats.binom.pmf(lost, flips, 0.5)
        tie = 2 * lost == flips  # the two sides are one outcome, and the test gives 1
        expected = 1.0 if tie else exact - observed
        assert mid_p(paired(flips + 5, lost, flips - lost)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shift", [0.0, 0.03, 0.1, 0.2])
def test_sign_flip_p_is_the_exact_permutation_test(shift: float) -> None:
    d = np.random.default_rng(1).normal(shift, 0.15, 12)
    exact = stats.permutation_test(
        (d,), np.sum, permutation_type="samples", n_resamples=np.inf, vectorized=False
    ).pvalue
    error = (exact * (1 - exact) / 10_000) ** 0.5
    assert sign_flip_p(d) == pytest.approx(exact, abs=4 * error + 2e-4)


def test_bootstrap_bounds_of_normal_differences_are_the_t_interval() -> None:
    d = np.random.default_rng(2).normal(-0.02, 0.1, 400)
    half = stats.t.ppf(1 - BOUND_LEVEL, len(d) - 1) * stats.sem(d)
    assert bootstrap_bounds(d) == pytest.approx((d.mean() - half, d.mean() + half), rel=0.03)


@pytest.mark.parametrize("n", [20, 60, 500])
def test_fieller_bounds_are_the_roots_of_the_score(n: int) -> None:
    """The interval holds each ratio r for which the mean of y - r x is within Z errors of 0."""
    rng = np.random.default_rng(n)
    x = rng.normal(0.7, 0.4, n)
    y = 0.9 * x + rng.normal(0, 0.2, n)

    def score(r: float) -> float:
        return float((y - r * x).mean() / stats.sem(y - r * x))

    value = float(y.mean() / x.mean())
    low = optimize.brentq(lambda r: score(r) - Z, value - 2, value)
    high = optimize.brentq(lambda r: score(r) + Z, value, value + 2)
    assert fieller_interval(y, x) == pytest.approx((low, high), abs=1e-9)


def test_fieller_covers_the_true_ratio_in_95_of_100_samples() -> None:
    rng = np.random.default_rng(5)
    inside = 0
    for _ in range(2000):
        x = rng.normal(0.5, 0.5, 100)
        low, high = fieller_interval(0.8 * x + rng.normal(0, 0.3, 100), x)
        assert low is not None and high is not None
        inside += low <= 0.8 <= high
    assert stats.binomtest(inside, 2000, 0.95).pvalue > 0.001


def test_lower_bound_is_the_root_of_tangos_statistic() -> None:
    for n, lost, won in [(60, 1, 0), (400, 12, 5), (1500, 40, 61)]:
        p = paired(n, lost, won)
        root = optimize.brentq(lambda d, p=p: tango_z(p, d) - Z, -0.999, p.difference)
        assert lower_bound(p, Z) == pytest.approx(root, abs=1e-9)


def test_normal_quantiles() -> None:
    assert pytest.approx(stats.norm.ppf(0.975), abs=1e-6) == Z
    for power, z in noninferiority._POWER_Z.items():
        assert z == pytest.approx(stats.norm.ppf(power), abs=1e-4)


def test_interval_of_a_ratio_of_medians_is_scipys_bootstrap() -> None:
    rng = np.random.default_rng(4)
    base = rng.normal(1, 0.04, 20)
    seconds = 1.4 * base + rng.normal(0, 0.03, 20)
    result = ratio_of_medians(seconds.tolist(), base.tolist())
    interval = stats.bootstrap(
        (seconds, base),
        lambda a, b, axis: np.median(a, axis) / np.median(b, axis),
        paired=True, method="percentile", n_resamples=5000, rng=rng,
    ).confidence_interval  # fmt: skip
    assert result["low"] == pytest.approx(interval.low, abs=0.004)
    assert result["high"] == pytest.approx(interval.high, abs=0.004)
