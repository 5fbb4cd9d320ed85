"""Pairs of scores, one after the other -> PASS or FAIL as soon as enough items were seen.

    test = SequentialTest(margin=0.05)
    for before, after in zip(baseline, candidate):      # in random order
        if test.update(before, after):
            break
    test.outcome                                        # PASS, FAIL or None: undecided

The test is an e-process. To test H0 "the candidate is at least `margin` worse", it bets on every
item: with X = after - before in [-1, 1], the wealth E is the product of 1 + l (X + margin). Under H0
no bet makes E grow on average, so E ever reaches 1 / alpha with probability alpha at most (Ville
1939), no matter how often one looks. A second wealth bets against "the candidate is less than
`margin` worse" and decides FAIL. The stake l depends on earlier items only: it is the approximate
growth-rate-adaptive stake of Waudby-Smith and Ramdas, JRSS B 86:1-27 (2024), started with a guess
that weighs as much as `PRIOR_ITEMS` items.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgeft.benchmarks.statistics.noninferiority import ALPHA, Outcome

PRIOR_ITEMS = 20.0
"""weight of the first guess, in items: no difference, one item in twenty changed"""
PRIOR_FLIP_RATE = 0.05
MAX_STAKE = 0.9
"""largest share of the wealth that one bet may lose"""


@dataclass
class SequentialTest:
    margin: float
    alpha: float = ALPHA
    pass_wealth: float = 1.0
    fail_wealth: float = 1.0
    items: int = 0
    """items bet on so far"""
    _sum: float = 0.0
    _squares: float = PRIOR_ITEMS * PRIOR_FLIP_RATE

    def update(self, before: float, after: float) -> Outcome | None:
        """Bet on one more item and return `outcome`; a decided test ignores further items."""
        if self.outcome:
            return self.outcome
        x = after - before
        stake = self._stake()
        self.pass_wealth *= 1 + min(max(stake, 0.0), MAX_STAKE / (1 - self.margin)) * (
            x + self.margin
        )
        self.fail_wealth *= 1 - min(max(-stake, 0.0), MAX_STAKE / (1 + self.margin)) * (
            x + self.margin
        )
        self.items += 1
        self._sum += x
        self._squares += x * x
        return self.outcome

    @property
    def outcome(self) -> Outcome | None:
        """PASS or FAIL; None while undecided."""
        if self.pass_wealth >= 1 / self.alpha:
            return "PASS"
        return "FAIL" if self.fail_wealth >= 1 / self.alpha else None

    def _stake(self) -> float:
        """The stake that would have grown the wealth fastest so far: mean over second moment."""
        count = self.items + PRIOR_ITEMS
        mean = self._sum / count + self.margin
        second = self._squares / count + 2 * self.margin * self._sum / count + self.margin**2
        return mean / second
