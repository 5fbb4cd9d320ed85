"""Stop early: an e-process says PASS or FAIL as soon as the items seen are enough.

    test = Sequential(margin=0.05)
    for before, after in zip(baseline, candidate):      # in random order
        if test.update(before, after):
            break
    test.outcome                                        # PASS, FAIL or None: not yet

Against H0 "the candidate is at least `margin` worse" one bets on every item: with X = after - before
in [-1, 1], the wealth E is the product of 1 + l (X + margin). Under H0 no bet makes it grow on
average, so it ever reaches 1 / alpha with probability alpha at most (Ville 1939), however often one
looks. A second wealth bets against "it is less than `margin` worse" and says FAIL. The stake l depends
on former items only: the approximate growth-rate-adaptive one of Waudby-Smith and Ramdas, JRSS B
86:1-27 (2024), started with a guess that stands for `PRIOR` items.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgeft.benchmarks.statistics.noninferiority import ALPHA, Outcome

PRIOR = 20.0
"""items that the first guess counts for: no difference, one item in twenty changed"""
GUESSED_FLIPS = 0.05
BOLDEST = 0.9
"""share of the wealth that a bet may lose"""


@dataclass
class Sequential:
    margin: float
    alpha: float = ALPHA
    pass_wealth: float = 1.0
    fail_wealth: float = 1.0
    items: int = 0
    _sum: float = 0.0
    _squares: float = PRIOR * GUESSED_FLIPS

    def update(self, before: float, after: float) -> Outcome | None:
        """Bet on one more item; the outcome, if there is one by now."""
        if self.outcome:
            return self.outcome
        x = after - before
        stake = self._stake()
        self.pass_wealth *= 1 + min(max(stake, 0.0), BOLDEST / (1 - self.margin)) * (
            x + self.margin
        )
        self.fail_wealth *= 1 - min(max(-stake, 0.0), BOLDEST / (1 + self.margin)) * (
            x + self.margin
        )
        self.items += 1
        self._sum += x
        self._squares += x * x
        return self.outcome

    @property
    def outcome(self) -> Outcome | None:
        if self.pass_wealth >= 1 / self.alpha:
            return "PASS"
        return "FAIL" if self.fail_wealth >= 1 / self.alpha else None

    def _stake(self) -> float:
        """What would have made the wealth grow fastest so far: mean over second moment."""
        count = self.items + PRIOR
        mean = self._sum / count + self.margin
        second = self._squares / count + 2 * self.margin * self._sum / count + self.margin**2
        return mean / second
