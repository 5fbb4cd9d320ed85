"""Votes -> which arm is preferred, with confidence interval and p value.

    result = count_votes(pairs, file.seed, file.votes)
    result.total.rate, result.total.interval, result.total.mid_p, result.meaning

An item counts once, however many raters voted on it. The majority of the raters who prefer an arm
decides; without a majority it is a tie. So items are independent, as the statistics require: Wilson's
interval of the win rate (E. B. Wilson, JASA 22:209-212, 1927), and the sign test on the items without
ties with its mid-p value (equal to McNemar's, `edgeft.benchmarks.statistics.noninferiority`).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from edgeft.benchmarks.statistics.noninferiority import ALPHA, Paired, mid_p, wilson
from edgeft.human.votes import Pairs, Vote, active_votes
from edgeft.report.tables import table


@dataclass(frozen=True)
class Tally:
    """Numbers of items, as seen from the first arm."""

    wins: int
    losses: int
    ties: int
    """`bad` and `identical` included"""
    bad: int = 0
    """neither answer is acceptable"""
    identical: int = 0
    """both arms give the same answer; nobody was asked"""

    @property
    def n(self) -> int:
        return self.wins + self.losses + self.ties

    @property
    def rate(self) -> float | None:
        """Win rate: share of the items won, a tie as half; None without items."""
        return (self.wins + self.ties / 2) / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % confidence interval of `rate`; ties vary less, so with ties it is slightly too wide."""
        return wilson(self.wins + self.ties / 2, self.n) if self.n else None

    @property
    def decided(self) -> float | None:
        """Share of the items won, ties left out; None where all are ties."""
        return self.wins / (self.wins + self.losses) if self.wins + self.losses else None

    @property
    def decided_interval(self) -> tuple[float, float] | None:
        """95 % confidence interval of `decided`."""
        n = self.wins + self.losses
        return wilson(self.wins, n) if n else None

    @property
    def mid_p(self) -> float | None:
        """Two-sided mid-p value of the sign test; the hypothesis is that neither arm is preferred."""
        return mid_p(Paired(self.n, self.ties, self.losses, self.wins, 0)) if self.n else None

    def to_json(self) -> dict[str, Any]:
        names = ("n", "rate", "interval", "decided", "decided_interval", "mid_p")
        return dataclasses.asdict(self) | {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Result:
    """What the votes say about two arms."""

    names: tuple[str, str]
    total: Tally
    slices: dict[str, Tally]
    """tag -> its items, the most frequent tag first"""
    votes: dict[str, int]
    """rater -> number of items with a vote"""
    agreement: float | None
    """share of pairs of votes on the same item that are equal; None with one rater"""
    left_rate: float | None
    """share of the preferences for the left side; far from 0.5, raters preferred a side"""
    missing: int
    """items that nobody has voted on yet"""

    @property
    def meaning(self) -> str:
        """One sentence for people."""
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


def count_votes(pairs: Pairs, seed: int, votes: Iterable[Vote]) -> Result:
    """The result of the votes given so far; `seed` is that of the votes file."""
    acts = active_votes(votes)
    by_item: dict[int, dict[str, Vote]] = {}  # item -> rater -> the last vote
    for rater, rater_acts in acts.items():
        for vote in rater_acts:
            if vote.vote != "skip":
                by_item.setdefault(vote.item, {})[rater] = vote
    # Identical answers count up to the first pair that nobody was shown. So the items that count are
    # a random sample of all items at any time.
    shown = {vote.item for rater_acts in acts.values() for vote in rater_acts} | pairs.identical
    reached = itertools.takewhile(shown.__contains__, pairs.order(seed))
    outcomes = {item: "identical" for item in reached if item in pairs.identical}
    for item, item_votes in by_item.items():
        outcomes[item] = _outcome([vote.vote for vote in item_votes.values()])
    raters = {rater: sum(rater in voters for voters in by_item.values()) for rater in acts}
    return Result(
        names=pairs.names,
        total=_tally(list(outcomes.values())),
        slices=_slices(pairs, outcomes),
        votes={rater: number for rater, number in raters.items() if number},
        agreement=_agreement(by_item),
        left_rate=_left_rate([vote for voters in by_item.values() for vote in voters.values()]),
        missing=len(pairs.examples) - len(pairs.identical) - len(by_item),
    )


def _slices(pairs: Pairs, outcomes: dict[int, str]) -> dict[str, Tally]:
    by_tag: dict[str, list[str]] = {}
    for item, outcome in outcomes.items():
        for tag in pairs.examples[item].tags:
            by_tag.setdefault(tag, []).append(outcome)
    ordered = sorted(by_tag.items(), key=lambda pair: (-len(pair[1]), pair[0]))
    return {tag: _tally(tag_outcomes) for tag, tag_outcomes in ordered}


def result_text(result: Result) -> str:
    """The result in lines for a terminal."""
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
        agreement = "" if result.agreement is None else f"; they agree on {result.agreement:.0%}"
        lines.append(f"  {len(result.votes)} raters{agreement}")
    if total.n and len(result.slices) > 1:
        rows = [
            [tag, str(tally.n), str(tally.wins), str(tally.losses), str(tally.ties),
             _share(tally.rate, tally.interval)]
            for tag, tally in result.slices.items()
        ]  # fmt: skip
        lines += ["", table(["tag", "items", "won", "lost", "tied", "win rate"], rows)]
    return "\n".join(lines)


def _share(rate: float | None, interval: tuple[float, float] | None) -> str:
    if rate is None or interval is None:
        return "-"
    return f"{rate:.0%} ({interval[0]:.0%} to {interval[1]:.0%})"


def _outcome(votes: Sequence[str]) -> str:
    """a, b, tie or bad: of the votes on one item."""
    a, b = votes.count("a"), votes.count("b")
    if a != b:
        return "a" if a > b else "b"
    return "bad" if set(votes) == {"bad"} else "tie"


def _tally(outcomes: Sequence[str]) -> Tally:
    bad, identical = outcomes.count("bad"), outcomes.count("identical")
    ties = outcomes.count("tie") + bad + identical
    return Tally(outcomes.count("a"), outcomes.count("b"), ties, bad, identical)


def _agreement(by_item: dict[int, dict[str, Vote]]) -> float | None:
    same = [
        one.vote == other.vote
        for votes in by_item.values()
        for one, other in itertools.combinations(votes.values(), 2)
    ]
    return sum(same) / len(same) if same else None


def _left_rate(votes: Sequence[Vote]) -> float | None:
    left = [vote.vote == vote.left for vote in votes if vote.vote in ("a", "b")]
    return sum(left) / len(left) if left else None
