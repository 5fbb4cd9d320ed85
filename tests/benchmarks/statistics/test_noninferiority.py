"""The paired gate, held against published values, a likelihood oracle and exact error rates.

In: hand-made 2 x 2 tables and trinomial distributions.  Out: the gate's numbers, each compared
with a source that does not share its code.

Example: ``pytest tests/benchmarks/statistics/test_noninferiority.py -k published``
"""

import dataclasses
import itertools
import json
import math
import random
from collections.abc import Callable
from fractions import Fraction

import pytest

from edgeft.benchmarks.statistics.noninferiority import (
    FAIL_Z,
    PASS_Z,
    Paired,
    default_margin,
    items_needed,
    judge,
    lower_bound,
    mid_p,
    minimum_items,
    tango_z,
    upper_bound,
    wilson,
)
from edgeft.release.wording import verdict_json, verdict_reason

pytestmark = pytest.mark.unit


def table(n: int, lost: int, won: int) -> Paired:
    return Paired(n, n - lost - won, lost, won, 0)


# ---------------------------------------------------------------- counting


def test_count_sorts_each_pair_into_its_cell() -> None:
    baseline = [True] * 5 + [True] * 3 + [False] * 2 + [False]
    candidate = [True] * 5 + [False] * 3 + [True] * 2 + [False]
    p = Paired.count(baseline, candidate)
    assert p == Paired(n=11, both=5, lost=3, won=2, neither=1)
    assert p.difference == pytest.approx(-1 / 11)
    assert p.flip_rate == pytest.approx(5 / 11)


def test_count_refuses_different_lengths_and_nothing() -> None:
    with pytest.raises(ValueError, match="baseline 2, candidate 1"):
        Paired.count([True, True], [True])
    with pytest.raises(ValueError, match="at least one item"):
        Paired.count([], [])


def test_inconsistent_tables_are_refused() -> None:
    with pytest.raises(ValueError, match="add up to 3, not to n = 4"):
        Paired(4, 1, 1, 1, 0)
    with pytest.raises(ValueError, match="negative"):
        Paired(2, 2, -1, 1, 0)
    with pytest.raises(ValueError, match="at least one item"):
        Paired(0, 0, 0, 0, 0)


# ---------------------------------------------------------------- score statistic


def constrained_fit(n: int, x: int, y: int, d: float) -> tuple[float, float, float]:
    """Maximise the trinomial likelihood under P(won) - P(lost) = d by golden section."""

    def loglik(q: float) -> float:
        cells = ((x, q + d), (y, q), (n - x - y, 1.0 - 2.0 * q - d))
        return sum(k * math.log(prob) if prob > 0 else -math.inf for k, prob in cells if k)

    low, high = max(0.0, -d), (1.0 - d) / 2.0
    ratio = (math.sqrt(5.0) - 1.0) / 2.0
    for _ in range(200):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if loglik(left) < loglik(right):
            low = left
        else:
            high = right
    q = (low + high) / 2.0
    return q + d, q, 1.0 - 2.0 * q - d


@pytest.mark.parametrize("d", [-0.6, -0.2, -0.05, -0.01, 0.0, 0.03, 0.3, 0.7])
def test_z_is_the_score_statistic_of_the_constrained_likelihood(d: float) -> None:
    # Rao's score statistic of a multinomial is Pearson's chi-square at the constrained fit.
    for n, lost, won in [(20, 3, 5), (44, 2, 1), (100, 6, 2), (100, 50, 45), (300, 1, 9)]:
        fit = constrained_fit(n, won, lost, d)
        observed = (won, lost, n - won - lost)
        pearson = sum((o - n * f) ** 2 / (n * f) for o, f in zip(observed, fit, strict=True))
        expected = math.copysign(math.sqrt(pearson), (won - lost) / n - d)
        assert tango_z(table(n, lost, won), d) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("d", [-0.3, -0.05, 0.0, 0.05, 0.3])
@pytest.mark.parametrize("cells", [(60, 0, 4), (60, 4, 0), (60, 0, 60), (60, 60, 0), (60, 1, 59)])
def test_z_uses_the_fitted_variance_when_a_cell_is_empty(
    cells: tuple[int, int, int], d: float
) -> None:
    n, lost, won = cells
    win, loss, _ = constrained_fit(n, won, lost, d)
    expected = (won - lost - n * d) / math.sqrt(n * (win + loss - d * d))
    assert tango_z(table(n, lost, won), d) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_z_at_zero_is_mcnemars_statistic() -> None:
    assert tango_z(table(50, 9, 4), 0.0) == pytest.approx((4 - 9) / math.sqrt(13))


def test_published_intervals() -> None:
    # Fagerland, Lydersen, Laake, Stat. Med. 33:2850 (2014): Bentur et al. 2009, -.517 to -.026.
    bentur = Paired(21, 1, 7, 1, 12)
    assert lower_bound(bentur, 1.959964) == pytest.approx(-0.517, abs=5e-4)
    assert upper_bound(bentur, 1.959964) == pytest.approx(-0.026, abs=5e-4)
    # Tango 1998, contact lenses: 43 and 1 of 44 pairs, margin .1, z = 1.709.
    assert tango_z(Paired(44, 43, 1, 0, 0), -0.1) == pytest.approx(1.709, abs=5e-4)


def test_swapping_the_arms_mirrors_everything() -> None:
    rng = random.Random(7)
    for _ in range(200):
        n = rng.randint(1, 300)
        lost = rng.randint(0, n)
        won = rng.randint(0, n - lost)
        p, mirrored = table(n, lost, won), table(n, won, lost)
        d = rng.uniform(-1, 1)
        assert tango_z(p, d) == -tango_z(mirrored, -d)
        assert lower_bound(p, 1.7) == pytest.approx(-upper_bound(mirrored, 1.7), abs=1e-9)
        assert mid_p(p) == mid_p(mirrored)


def test_z_falls_as_the_hypothesised_difference_grows() -> None:
    steps = [i / 400 for i in range(-399, 400)]
    for n, lost, won in itertools.product((30, 200), (0, 1, 7, 30), (0, 1, 7, 30)):
        if lost + won <= n:
            zs = [tango_z(table(n, lost, won), d) for d in steps]
            assert all(a > b for a, b in itertools.pairwise(zs)), (n, lost, won)


def test_z_rises_with_every_win_and_falls_with_every_loss() -> None:
    for lost, won in itertools.product(range(30), range(30)):
        z = tango_z(table(60, lost, won), -0.05)
        assert tango_z(table(60, lost, won + 1), -0.05) > z
        assert tango_z(table(60, lost + 1, won), -0.05) < z


def test_z_at_the_edges() -> None:
    still = table(50, 0, 0)
    assert tango_z(still, 0.0) == 0.0
    assert tango_z(still, -1.0) == math.inf
    assert tango_z(still, 1.0) == -math.inf
    assert tango_z(table(50, 0, 50), 1.0) == 0.0
    assert tango_z(table(50, 50, 0), -1.0) == 0.0
    assert tango_z(table(50, 1, 49), 1.0) == -math.inf
    # No flips: z = sqrt(n M / (1 - M)), by hand from q = 0.
    assert tango_z(still, -0.05) == pytest.approx(math.sqrt(50 * 0.05 / 0.95))
    # Tiny differences must not be eaten by cancellation.
    for tiny in (1e-12, 1e-170):
        assert tango_z(still, -tiny) == pytest.approx(math.sqrt(50 * tiny), rel=1e-9)
        assert tango_z(still, tiny) == pytest.approx(-math.sqrt(50 * tiny), rel=1e-9)
    for bad in (-1.01, 1.01, math.nan):
        with pytest.raises(ValueError, match=r"\[-1, 1\]"):
            tango_z(still, bad)


def test_bounds_are_the_roots_and_bracket_the_estimate() -> None:
    for n, lost, won in [(59, 0, 0), (100, 6, 2), (100, 0, 9), (400, 30, 33), (10, 10, 0)]:
        p = table(n, lost, won)
        low, high = lower_bound(p), upper_bound(p)
        assert -1.0 <= low <= p.difference <= high <= 1.0
        if low > -1.0:
            assert tango_z(p, low) >= PASS_Z > tango_z(p, low + 1e-9)
        if high < 1.0:
            assert tango_z(p, high - 1e-9) > -FAIL_Z >= tango_z(p, high)
    # No flips: the roots are -z^2 / (n + z^2) and its mirror image.
    assert lower_bound(table(59, 0, 0)) == pytest.approx(-(PASS_Z**2) / (59 + PASS_Z**2))
    assert lower_bound(table(10, 10, 0)) == -1.0
    assert upper_bound(table(10, 0, 10)) == 1.0
    with pytest.raises(ValueError, match="quantile"):
        lower_bound(table(10, 1, 1), 0.0)


# ---------------------------------------------------------------- mid-p, Wilson, sizes


def test_mid_p_by_hand() -> None:
    assert mid_p(table(9, 0, 0)) == 1.0
    assert mid_p(table(9, 1, 0)) == 0.5
    assert mid_p(table(9, 0, 5)) == 1 / 32
    assert mid_p(table(9, 1, 3)) == 2 * (1 / 16 + 0.5 * 4 / 16)
    assert mid_p(table(9, 4, 4)) == 1.0
    # Fagerland, Lydersen, Laake, BMC 13:91 (2013), Bentur et al. 2009: .0391.
    assert mid_p(Paired(21, 1, 7, 1, 12)) == pytest.approx(0.0391, abs=5e-5)


def test_mid_p_against_every_coin_sequence() -> None:
    for flips in range(1, 13):
        heads = [sum(coins) for coins in itertools.product((0, 1), repeat=flips)]
        for lost in range(flips + 1):
            k = min(lost, flips - lost)
            halves = sum(2 * (h < k) + (h == k) for h in heads)
            expected = float(min(Fraction(1), Fraction(halves, 2**flips)))
            assert mid_p(table(20, lost, flips - lost)) == expected


def test_mid_p_for_many_flips_matches_exact_whole_numbers() -> None:
    for flips, k in [(1001, 500), (1001, 450), (1500, 700), (4000, 1900), (4000, 2000)]:
        halves = 2 * sum(math.comb(flips, i) for i in range(k)) + math.comb(flips, k)
        expected = float(Fraction(halves, 2**flips))
        assert mid_p(table(5000, k, flips - k)) == pytest.approx(min(1.0, expected), rel=1e-9)
    assert mid_p(table(2_000_000, 0, 1_000_000)) == 0.0
    assert 0.1 < mid_p(table(2_000_000, 500_000, 501_000)) < 0.5


def test_wilson() -> None:
    # Newcombe, Stat. Med. 17:857 (1998), table I, method 3, 95 %.
    for k, n, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert wilson(k, n, 1.959964) == pytest.approx((low, high), abs=5.1e-5)
    for n in range(1, 200):
        assert wilson(0, n)[0] == 0.0
        assert wilson(n, n)[1] == 1.0
    for k, n in [(1, 0), (-1, 5), (6, 5)]:
        with pytest.raises(ValueError, match="0 <= k <= n"):
            wilson(k, n)


@pytest.mark.parametrize(("margin", "items"), [(0.05, 59), (0.03, 100), (0.02, 151), (0.01, 304)])
def test_fewest_items_that_can_pass(margin: float, items: int) -> None:
    assert minimum_items(margin) == items
    assert items_needed(0.0, margin) == items
    assert judge(table(items, 0, 0), margin).outcome == "PASS"
    assert judge(table(items - 1, 0, 0), margin).outcome == "INCONCLUSIVE"


@pytest.mark.parametrize(
    ("margin", "exact"),
    [(0.05, (110, 156, 195, 292)), (0.03, (236, 353, 500, 750)), (0.02, (450, 755, 1010, 1680))],
)
def test_items_needed_is_near_the_exact_numbers(margin: float, exact: tuple[int, ...]) -> None:
    """`exact`: fewest items of power .8 by exact sums, at flip rates of 2, 4, 6 and 10 %."""
    for psi, wanted in zip((0.02, 0.04, 0.06, 0.10), exact, strict=True):
        assert 0.99 * wanted <= items_needed(psi, margin) <= 1.07 * wanted
        assert items_needed(psi, margin, power=0.9) > items_needed(psi, margin)


def test_items_needed_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="power"):
        items_needed(0.06, 0.05, power=0.95)
    for psi in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="flip rate"):
            items_needed(psi, 0.05)


def test_default_margin() -> None:
    sizes = (1, 399, 400, 1499, 1500, 10**6)
    assert [default_margin(n) for n in sizes] == [0.05, 0.05, 0.03, 0.03, 0.02, 0.02]
    with pytest.raises(ValueError, match="at least one"):
        default_margin(0)


# ---------------------------------------------------------------- exact error rates


def probability(n: int, lose: float, win: float, accepted: Callable[[int, int], bool]) -> float:
    """Exact trinomial probability that ``accepted(lost, won)`` holds."""
    keep = 1.0 - lose - win
    total = 0.0
    for lost in range(n + 1):
        weight = math.comb(n, lost) * lose**lost
        for won in range(n - lost + 1):
            if accepted(lost, won):
                total += weight * math.comb(n - lost, won) * win**won * keep ** (n - lost - won)
    return total


def fewest_wins_to_pass(n: int, margin: float) -> list[int]:
    """For each number of losses the fewest wins that make the gate PASS (n + 1 if none do)."""
    frontier = []
    won = 0
    for lost in range(n + 1):
        while won <= n - lost and judge(table(n, lost, won), margin).outcome != "PASS":
            won += 1
        frontier.append(won if won <= n - lost else n + 1)
    return frontier


@pytest.mark.parametrize(
    ("n", "margin"), [(21, 0.05), (59, 0.05), (87, 0.05), (118, 0.05), (100, 0.03), (120, 0.03)]
)
def test_a_model_worse_by_the_margin_passes_at_most_one_time_in_twenty(
    n: int, margin: float
) -> None:
    frontier = fewest_wins_to_pass(n, margin)
    for psi in (margin, margin + 0.01, 0.1, 0.3, 1.0):
        rate = probability(
            n, (psi + margin) / 2, (psi - margin) / 2, lambda lost, won: won >= frontier[lost]
        )
        assert rate <= 0.05, (n, margin, psi)
    if n == 59:
        # At psi = M only the no-flip table passes, so this one is known by hand.
        assert probability(n, margin, 0.0, lambda lost, won: won >= frontier[lost]) == (
            pytest.approx(0.95**59)
        )


def test_the_usual_normal_quantiles_would_break_both_promises() -> None:
    # Why PASS_Z is not 1.645 ...
    assert tango_z(table(52, 0, 0), -0.05) > 1.645
    assert 0.95**52 > 0.069
    # ... and FAIL_Z neither.
    n, margin, psi = 62, 0.05, 0.07

    def accused(z: float) -> float:
        return probability(
            n,
            (psi + margin) / 2,
            (psi - margin) / 2,
            lambda lost, won: tango_z(table(n, lost, won), -margin) < -z,
        )

    assert accused(1.645) > 0.09
    assert accused(FAIL_Z) <= 0.05


def test_an_equally_good_model_is_rarely_failed_and_passes_as_documented() -> None:
    def rate(n: int, psi: float, outcome: str) -> float:
        return probability(
            n,
            psi / 2,
            psi / 2,
            # Tables with more flips are too rare at these rates to matter, and slow.
            lambda lost, won: (
                lost + won <= 25 and judge(table(n, lost, won), 0.05).outcome == outcome
            ),
        )

    assert rate(59, 0.02, "PASS") == pytest.approx(0.591, abs=1e-3)
    assert rate(110, 0.02, "PASS") == pytest.approx(0.841, abs=1e-3)
    assert rate(110, 0.06, "FAIL") < 0.025


# ---------------------------------------------------------------- verdicts


def test_pass() -> None:
    verdict = judge(Paired(400, 300, 2, 1, 97))
    assert verdict.outcome == "PASS"
    assert verdict.exit_code == 0
    assert (verdict.n, verdict.lost, verdict.won) == (400, 2, 1)
    assert verdict.margin == 0.03
    assert verdict.alpha == 0.05
    assert verdict.items_needed is None
    assert verdict.lower == lower_bound(table(400, 2, 1)) > -verdict.margin
    assert verdict.upper == upper_bound(table(400, 2, 1))
    assert verdict.mid_p == 2 * (1 / 8 + 0.5 * 3 / 8)
    assert verdict_reason(verdict) == (
        "400 items, 2 lost and 1 won: the candidate lost 0.25 points and, with 95 % confidence, "
        f"is at most {-100 * verdict.lower:.2f} points worse, inside the 3 points allowed."
    )


def test_fail() -> None:
    verdict = judge(table(200, 30, 2))
    assert verdict.outcome == "FAIL"
    assert verdict.exit_code == 3
    assert verdict.upper < -0.05
    assert verdict.items_needed is None
    assert "lost 14.00 points, 5 points or more" in verdict_reason(verdict)
    assert "chance does not explain it" in verdict_reason(verdict)


def test_fail_by_mid_p_alone() -> None:
    verdict = judge(table(100, 5, 0))
    assert verdict.upper > -0.05
    assert verdict.difference == -0.05
    assert verdict.mid_p == 1 / 32
    assert verdict.outcome == "FAIL"
    # Loss as large but not significant, and significant but smaller than the margin.
    assert judge(table(80, 4, 0)).mid_p == 1 / 16
    assert judge(table(80, 4, 0)).outcome == "INCONCLUSIVE"
    assert judge(table(130, 6, 0), 0.05).mid_p < 0.05
    assert judge(table(130, 6, 0), 0.05).outcome == "INCONCLUSIVE"


def test_inconclusive_names_the_items_it_needs() -> None:
    verdict = judge(table(100, 4, 2))
    assert verdict.outcome == "INCONCLUSIVE"
    assert verdict.exit_code == 4
    assert verdict.items_needed == items_needed(0.06, 0.05) == 205
    assert "needs about 205 items at your flip rate of 6.0 %" in verdict_reason(verdict)


def test_inconclusive_after_enough_items_counts_the_loss_seen() -> None:
    p = table(400, 14, 0)
    verdict = judge(p, 0.05)
    assert items_needed(p.flip_rate, 0.05) < 400
    assert verdict.outcome == "INCONCLUSIVE"
    assert verdict.items_needed is not None and verdict.items_needed > 400
    # The same rates on that many items reach the strength that the rule plans for.
    factor = verdict.items_needed / 400
    scaled = table(round(400 * factor), round(14 * factor), 0)
    assert judge(scaled, 0.05).outcome == "PASS"
    assert tango_z(scaled, -0.05) ** 2 == pytest.approx(6.72, rel=0.05)


def test_a_loss_of_exactly_the_margin_is_not_an_escape() -> None:
    verdict = judge(table(400, 50, 30), 0.05)
    assert verdict.difference == -0.05
    assert verdict.outcome == "FAIL"
    # 0.1 * 3 is one bit above 0.3.
    assert judge(table(100, 30, 0), 0.1 * 3).outcome == "FAIL"
    # Three losses can still be chance.
    verdict = judge(table(60, 3, 0), 0.05)
    assert verdict.outcome == "INCONCLUSIVE"
    assert verdict.items_needed == 183


def test_too_few_items_cannot_certify() -> None:
    verdict = judge(table(40, 0, 0))
    assert verdict.outcome == "INCONCLUSIVE"
    assert verdict.exit_code == 4
    assert verdict_reason(verdict).startswith("cannot certify 5 points with 40 items")
    assert verdict.items_needed == 59
    # Wins do not buy a PASS below the minimum: on 3 items that would err 12 % of the time.
    lucky = judge(table(40, 0, 20))
    assert lucky.lower > -0.05
    assert lucky.outcome == "INCONCLUSIVE"
    assert verdict_reason(lucky).startswith("cannot certify 5 points with 40 items")
    # A plain loss is still called one.
    assert judge(table(40, 20, 0)).outcome == "FAIL"


def test_zero_flips_and_all_flips() -> None:
    assert judge(table(100, 0, 0)).outcome == "PASS"
    assert "scores the same" in verdict_reason(judge(table(100, 0, 0)))
    assert judge(table(100, 0, 100)).outcome == "PASS"
    assert "is no worse" in verdict_reason(judge(table(100, 0, 100)))
    assert judge(table(100, 100, 0)).outcome == "FAIL"
    assert judge(table(100, 50, 50)).outcome == "INCONCLUSIVE"
    assert judge(table(1, 1, 0)).outcome == "INCONCLUSIVE"


def test_a_baseline_without_anything_to_lose_certifies_nothing() -> None:
    verdict = judge(Paired(n=400, both=0, lost=0, won=0, neither=400))
    assert verdict.outcome == "INCONCLUSIVE"
    assert "score is only 0 % on 400 items" in verdict_reason(verdict)
    assert judge(Paired(n=400, both=12, lost=0, won=0, neither=388)).outcome == "INCONCLUSIVE"
    assert judge(Paired(n=400, both=13, lost=0, won=0, neither=387)).outcome == "PASS"


def test_passing_is_exactly_the_score_test_on_enough_items() -> None:
    for n in (59, 120, 195):
        for lost, won in itertools.product(range(12), range(12)):
            passed = judge(table(n, lost, won), 0.05).outcome == "PASS"
            assert passed == (tango_z(table(n, lost, won), -0.05) > PASS_Z)


def test_only_inconclusive_asks_for_items_and_always_for_more_than_was_run() -> None:
    for n, lost, won in itertools.product((40, 59, 74, 116, 320), range(24), range(0, 9, 2)):
        verdict = judge(table(n, lost, won), 0.05)
        if verdict.outcome == "INCONCLUSIVE":
            assert verdict.items_needed is not None
            assert verdict.items_needed > n, (lost, won)
        else:
            assert verdict.items_needed is None


@pytest.mark.parametrize("margin", [0.0, -0.05, 1.0, 5.0, math.nan, math.inf])
def test_margins_that_are_not_fractions_are_refused(margin: float) -> None:
    with pytest.raises(ValueError, match="0.05 is 5 points"):
        judge(table(100, 0, 0), margin)


def test_json_survives_a_round_trip() -> None:
    for p in (table(400, 2, 1), table(100, 20, 0), table(10, 1, 0), table(3, 3, 0)):
        verdict = judge(p)
        data = verdict_json(verdict, verdict_reason(verdict))
        fields = {field.name for field in dataclasses.fields(verdict)}
        assert set(data) == fields - {"ground", "graded", "baseline_score"} | {"reason"}
        assert json.loads(json.dumps(data, allow_nan=False)) == data
        assert data["outcome"] == verdict.outcome
        assert data["reason"] == verdict_reason(verdict)


def test_results_cannot_be_edited() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        judge(table(10, 1, 0)).outcome = "PASS"  # type: ignore[misc]
