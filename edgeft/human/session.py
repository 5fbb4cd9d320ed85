"""Pairs, the votes file and a rater -> what the page shows next, and what the rater may do.

    session = RaterSession(pairs, file, "kim")
    state = session.state()
    state = session.vote(state["pair"]["item"], "left")

The names of the arms are secret until `result`.
"""

from __future__ import annotations

import threading
from typing import Any

from edgeft.human.tally import count_votes
from edgeft.human.votes import ARMS, VOTES, Pairs, Vote, VotesFile, active_votes, remaining_items


class Conflict(Exception):
    """An act that does not fit the state: from a second tab, or after the end."""


class RaterSession:
    """One rater's voting. Safe to call from several threads."""

    def __init__(self, pairs: Pairs, file: VotesFile, rater: str) -> None:
        self.pairs, self.file, self.rater = pairs, file, rater
        self.closed = False
        """whether the names were shown; further votes would not be blind"""
        self.ended = threading.Event()
        """set when the page has received the result"""
        self._left_arms = pairs.left_arms(file.seed, rater)
        self._lock = threading.Lock()

    @property
    def queue(self) -> list[int]:
        """Items that still need a vote, the next one first."""
        return remaining_items(list(self._left_arms), self._votes)

    @property
    def _votes(self) -> list[Vote]:
        return active_votes(self.file.votes).get(self.rater, [])

    def state(self) -> dict[str, Any]:
        """The next pair, and how many are left."""
        with self._lock:
            return self._state()

    def vote(self, item: int, choice: str) -> dict[str, Any]:
        """Keep a vote on the pair that is shown; the state after it.

        `choice`: left, right, tie, bad or skip. Conflict where another pair is shown.
        """
        with self._lock:
            queue = self.queue
            if self.closed or not queue or queue[0] != item:
                raise Conflict("this pair is not asked now")
            left = self._left_arms[item]
            right = ARMS[1 - ARMS.index(left)]
            self._add(item, {"left": left, "right": right}.get(choice, choice))
            return self._state()

    def undo(self) -> dict[str, Any]:
        """Take the rater's last act back, which may be from an earlier run; the state after it."""
        with self._lock:
            votes = self._votes
            if self.closed or not votes:
                raise Conflict("there is nothing to undo")
            self._add(votes[-1].item, "undo")
            return self._state()

    def result(self) -> dict[str, Any]:
        """Close the session and show the result with the names (`Result.to_json`)."""
        with self._lock:
            if not self._votes:
                raise Conflict("there is no vote yet")
            self.closed = True
            return count_votes(self.pairs, self.file.seed, self.file.votes).to_json()

    def _add(self, item: int, act: str) -> None:
        self.file.add(Vote(item, act, self.rater, self._left_arms[item]))

    def _state(self) -> dict[str, Any]:
        queue, votes = self.queue, self._votes
        return {
            "rater": self.rater, "total": len(self._left_arms), "left": len(queue),
            "identical": len(self.pairs.identical), "undo": bool(votes),
            "votes": sum(vote.vote in VOTES for vote in votes),
            "pair": self._pair(queue[0], votes) if queue else None,
        }  # fmt: skip

    def _pair(self, item: int, votes: list[Vote]) -> dict[str, Any]:
        example = self.pairs.examples[item]
        left = ARMS.index(self._left_arms[item])
        left_side, right_side = (
            {"text": score.replies[item], "cut": not score.stopped[item]}
            for score in (self.pairs.scores[left], self.pairs.scores[1 - left])
        )
        return {
            "item": item, "wanted": example.answer,
            "prompt": [{"role": turn.role, "text": turn.content} for turn in example.prompt],
            "left": left_side, "right": right_side,
            "skipped": any(vote.item == item for vote in votes),
        }  # fmt: skip
