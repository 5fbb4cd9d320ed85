"""Votes -> which arm is preferred, and how sure that is.

    found = count(pairs, file.seed, file.votes)
    found.total.rate, found.total.interval, found.total.mid_p, found.meaning

An item counts once, however many raters voted on it: by the majority of those who preferred an arm,
else as a tie. So items are independent, which the statistics need: Wilson's interval of the win rate
(E. B. Wilson, JASA 22:209-212, 1927), and the sign test over the items that are not tied, with its
mid-p value (the same as McNemar's, `edgeft.benchmarks.statistics.noninferiority`).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from edgeft.benchmarks.statistics.noninferiority import ALPHA, Paired, mid_p, wilson
from edgeft.human.votes import Pairs, Vote, standing
from edgeft.report.tables import table


@dataclass(frozen=True)
class Tally:
    """Items, from the first arm's side."""

    wins: int
    losses: int
    ties: int
    """bad and identical ones included"""
    bad: int = 0
    """neither answer will do"""
    identical: int = 0
    """both arms say the same; nobody was asked"""

    @property
    def n(self) -> int:
        return self.wins + self.losses + self.ties

    @property
    def rate(self) -> float | None:
        """Share of the items won, a tie as half."""
        return (self.wins + self.ties / 2) / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % of `rate`; a little too wide where there are ties, which vary less."""
        return wilson(self.wins + self.ties / 2, self.n) if self.n else None

    @property
    def decided(self) -> float | None:
        """Share of the items won, without the ties."""
        return self.wins / (self.wins + self.losses) if self.wins + self.losses else None

    @property
    def decided_interval(self) -> tuple[float, float] | None:
        """95 % of `decided`."""
        count = self.wins + self.losses
        return wilson(self.wins, count) if count else None

    @property
    def mid_p(self) -> float | None:
        """Two-sided sign test of "neither is preferred"."""
        return mid_p(Paired(self.n, self.ties, self.losses, self.wins, 0)) if self.n else None

    def to_json(self) -> dict[str, Any]:
        names = ("n", "rate", "interval", "decided", "decided_interval", "mid_p")
        return dataclasses.asdict(self) | {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Result:
    names: tuple[str, str]
    total: Tally
    slices: dict[str, Tally]
    """by tag, the most frequent first"""
    votes: dict[str, int]
    """rater -> items that he voted on"""
    agreement: float | None
    """share of pairs of raters that voted the same on the same item"""
    left_rate: float | None
    """share of the preferences that went to the left side; far from a half, the side counted"""
    missing: int
    """items that nobody has voted on yet"""

    @property
    def voted(self) -> int:
        return self.total.n - self.total.identical

    @property
    def meaning(self) -> str:
        one, other = self.names
        total = self.total
        if not total.n:
            return "No votes, so nothing is known."
        assert total.mid_p is not None
        against = f"{total.wins} to {total.losses}"
        if not total.wins + total.losses:
            return "No difference that a rater saw: all are ties."
        if total.mid_p < ALPHA:
            better, worse = (one, other) if total.wins > total.losses else (other, one)
            return f"{better} is preferred to {worse}: chance hardly makes {against}."
        return (
            f"No preference is shown: chance alone may well make {against}. "
            "That is no proof that the two are equal."
        )

    def to_json(self) -> dict[str, Any]:
        one, other = self.names
        return {
            "a": one, "b": other, **self.total.to_json(), "missing": self.missing,
            "slices": [{"tag": tag, **tally.to_json()} for tag, tally in self.slices.items()],
            "votes": self.votes, "agreement": self.agreement, "left_rate": self.left_rate,
            "meaning": self.meaning,
        }  # fmt: skip


def count(pairs: Pairs, seed: int, votes: Iterable[Vote]) -> Result:
    """What the votes say so far.

    Of the identical answers only those count that lie before the first pair which nobody was shown:
    with them, what was voted on is a random part of all items at any time.
    """
    acts = standing(votes)
    last: dict[int, dict[str, Vote]] = {}
    for rater, own in acts.items():
        for vote in own:
            if vote.vote != "skip":
                last.setdefault(vote.item, {})[rater] = vote
    seen = {vote.item for own in acts.values() for vote in own} | pairs.identical
    reached = list(itertools.takewhile(seen.__contains__, pairs.order(seed)))
    outcomes = {item: "identical" for item in reached if item in pairs.identical}
    outcomes |= {item: _outcome([vote.vote for vote in own.values()])
                 for item, own in last.items()}  # fmt: skip
    tags: dict[str, list[str]] = {}
    for item, outcome in outcomes.items():
        for tag in pairs.examples[item].tags:
            tags.setdefault(tag, []).append(outcome)
    ordered = sorted(tags.items(), key=lambda pair: (-len(pair[1]), pair[0]))
    raters = {rater: sum(rater in own for own in last.values()) for rater in acts}
    return Result(
        names=pairs.names,
        total=_tally(list(outcomes.values())),
        slices={tag: _tally(own) for tag, own in ordered},
        votes={rater: number for rater, number in raters.items() if number},
        agreement=_agreement(last),
        left_rate=_left_rate([vote for own in last.values() for vote in own.values()]),
        missing=len(pairs.examples) - len(pairs.identical) - len(last),
    )


def text(result: Result) -> str:
    """For a terminal."""
    one, other = result.names
    total = result.total
    lines = [f"{one} against {other}: {result.meaning}"]
    if total.n:
        lines.append(
            f"  {total.wins} won, {total.losses} lost, {total.ties} tied "
            f"({total.bad} both bad, {total.identical} identical answers, not asked)"
        )
        lines.append(
            f"  win rate {_share(total.rate, total.interval)} at 95 % confidence, a tie as half"
        )
    if total.decided is not None:
        decided = _share(total.decided, total.decided_interval)
        lines.append(f"  without ties {decided}; sign test mid-p {total.mid_p:.2g}")
    if result.missing:
        lines.append(f"  {result.missing} pairs have no vote yet: the same command goes on")
    if len(result.votes) > 1:
        agreed = "" if result.agreement is None else f"; they agree on {result.agreement:.0%}"
        lines.append(f"  {len(result.votes)} raters{agreed}")
    if total.n and len(result.slices) > 1:
        rows = [
            [tag, str(own.n), str(own.wins), str(own.losses), str(own.ties),
             _share(own.rate, own.interval)]
            for tag, own in result.slices.items()
        ]  # fmt: skip
        lines += ["", table(["tag", "items", "won", "lost", "tied", "win rate"], rows)]
    return "\n".join(lines)


def _share(rate: float | None, interval: tuple[float, float] | None) -> str:
    if rate is None or interval is None:
        return "-"
    return f"{rate:.0%} ({interval[0]:.0%} to {interval[1]:.0%})"


def _outcome(votes: Sequence[str]) -> str:
    a, b = votes.count("a"), votes.count("b")
    if a != b:
        return "a" if a > b else "b"
    return "bad" if set(votes) == {"bad"} else "tie"


def _tally(outcomes: Sequence[str]) -> Tally:
    bad, identical = outcomes.count("bad"), outcomes.count("identical")
    ties = outcomes.count("tie") + bad + identical
    return Tally(outcomes.count("a"), outcomes.count("b"), ties, bad, identical)


def _agreement(last: dict[int, dict[str, Vote]]) -> float | None:
    same = [
        one.vote == other.vote
        for own in last.values()
        for one, other in itertools.combinations(own.values(), 2)
    ]
    return sum(same) / len(same) if same else None


def _left_rate(votes: Sequence[Vote]) -> float | None:
    left = [vote.vote == vote.left for vote in votes if vote.vote in ("a", "b")]
    return sum(left) / len(left) if left else None
