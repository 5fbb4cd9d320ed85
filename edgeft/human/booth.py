"""One rater's session: what the page shows, and what it may do. No name of an arm before the end."""

from __future__ import annotations

import threading
from typing import Any

from edgeft.human.tally import count
from edgeft.human.votes import ARMS, VOTES, Pairs, Vote, VotesFile, left_to_ask, standing


class Refused(Exception):
    """An act that does not fit the state: of a second tab, or after the end."""


class Booth:
    """Safe to call from several threads."""

    def __init__(self, pairs: Pairs, file: VotesFile, rater: str) -> None:
        self.pairs, self.file, self.rater = pairs, file, rater
        self.closed = False
        """the names were told, so no further vote would be blind"""
        self.ended = threading.Event()
        """and they have reached the page"""
        self._left = pairs.sides(file.seed, rater)
        self._lock = threading.Lock()

    @property
    def queue(self) -> list[int]:
        return left_to_ask(list(self._left), self._own)

    @property
    def _own(self) -> list[Vote]:
        return standing(self.file.votes).get(self.rater, [])

    def state(self) -> dict[str, Any]:
        """The next pair, and how far the rater is."""
        with self._lock:
            return self._state()

    def vote(self, item: int, act: str) -> dict[str, Any]:
        """`act`: left, right, tie, bad or skip, of the pair that is shown; the state after it."""
        with self._lock:
            queue = self.queue
            if self.closed or not queue or queue[0] != item:
                raise Refused("this pair is not asked now")
            left = self._left[item]
            right = ARMS[1 - ARMS.index(left)]
            self._add(item, {"left": left, "right": right}.get(act, act))
            return self._state()

    def undo(self) -> dict[str, Any]:
        """Take the last act back, that of an earlier run included."""
        with self._lock:
            own = self._own
            if self.closed or not own:
                raise Refused("there is nothing to undo")
            self._add(own[-1].item, "undo")
            return self._state()

    def result(self) -> dict[str, Any]:
        """The end: names are told, and no vote is taken any more."""
        with self._lock:
            if not self._own:
                raise Refused("there is no vote yet")
            self.closed = True
            return count(self.pairs, self.file.seed, self.file.votes).to_json()

    def _add(self, item: int, vote: str) -> None:
        self.file.add(Vote(item, vote, self.rater, self._left[item]))

    def _state(self) -> dict[str, Any]:
        queue, own = self.queue, self._own
        return {
            "rater": self.rater, "total": len(self._left), "left": len(queue),
            "identical": len(self.pairs.identical), "undo": bool(own),
            "votes": sum(vote.vote in VOTES for vote in own),
            "pair": self._pair(queue[0], own) if queue else None,
        }  # fmt: skip

    def _pair(self, item: int, own: list[Vote]) -> dict[str, Any]:
        example = self.pairs.examples[item]
        first = ARMS.index(self._left[item])
        sides = [
            {"text": score.replies[item], "cut": not score.stopped[item]}
            for score in (self.pairs.scores[first], self.pairs.scores[1 - first])
        ]
        return {
            "item": item, "wanted": example.answer,
            "prompt": [{"role": turn.role, "text": turn.content} for turn in example.prompt],
            "left": sides[0], "right": sides[1],
            "skipped": any(vote.item == item for vote in own),
        }  # fmt: skip
