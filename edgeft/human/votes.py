"""Two arms' answers -> the order in which pairs are shown, and the JSONL file that votes are kept in.

    pairs = Pairs(names, identities, examples, (one, other))
    with VotesFile(Path("votes.jsonl"), pairs) as file:
        file.add(Vote(item=3, vote="a", rater="kim", left="b"))
        remaining_items(pairs.order(file.seed), active_votes(file.votes)["kim"])

The first line of the file says what is compared. Each further line is one act of a rater. Lines are
only appended, so a killed program loses at most the line that it was writing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import random
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edgeft import __version__
from edgeft.appended_file import AppendedFile
from edgeft.data.splits import fingerprint
from edgeft.errors import DataError, InputError, StaleError
from edgeft.progress import say
from edgeft.records import Example, Score

ARMS = ("a", "b")
VOTES = (*ARMS, "tie", "bad")
"""arm a or b is better; both are equally good; neither answer is acceptable"""
ACTS = (*VOTES, "skip", "undo")
SCHEMA = 1
"""version of the file's format"""


@dataclass(frozen=True)
class Pairs:
    """Two arms' answers to the same items."""

    names: tuple[str, str]
    """of the arms, as the result shows them"""
    identities: tuple[str, str]
    """of the artifacts (`edgeft.store.identity`)"""
    examples: tuple[Example, ...]
    """the items"""
    scores: tuple[Score, Score]
    """the arms' answers to them"""

    def replies(self, item: int) -> tuple[str, str]:
        one, other = self.scores
        return one.replies[item], other.replies[item]

    @cached_property
    def identical(self) -> frozenset[int]:
        """Items with the same answer of both arms: ties, which are not shown."""
        items = range(len(self.examples))
        return frozenset(i for i in items if len(set(self.replies(i))) == 1)

    def order(self, seed: int) -> list[int]:
        """All items, shuffled. Every rater has this order, so that their first votes overlap."""
        items = list(range(len(self.examples)))
        random.Random(seed).shuffle(items)
        return items

    def left_arms(self, seed: int, rater: str) -> dict[int, str]:
        """Item to ask about -> the arm on the left, in the order of asking.

        Each arm is on the left in half of the pairs, drawn for each rater separately.
        """
        items = [item for item in self.order(seed) if item not in self.identical]
        rng = random.Random(f"{seed} {rater}")
        first = rng.choice(ARMS)
        left = [ARMS[(i + ARMS.index(first)) % 2] for i in range(len(items))]
        rng.shuffle(left)
        return dict(zip(items, left, strict=True))

    def header(self, seed: int) -> dict[str, Any]:
        """The first line of the votes file."""
        replies = hashlib.sha256(json.dumps([score.replies for score in self.scores]).encode())
        return {
            "votes": SCHEMA,
            "artifacts": [
                {"name": name, "identity": identity}
                for name, identity in zip(self.names, self.identities, strict=True)
            ],
            "items": fingerprint(self.examples),
            "answers": replies.hexdigest(),
            "seed": seed,
            "edgeft": __version__,
        }


@dataclass(frozen=True)
class Vote:
    """One act of a rater, a line of the file."""

    item: int
    """number in the list of items, from 0"""
    vote: str
    """a or b is better, tie, bad; skip asks again later, undo takes the rater's last act back"""
    rater: str
    """name; "" where one person votes"""
    left: str
    """arm that was shown on the left"""
    at: str = ""
    """time, ISO 8601 in UTC"""


def active_votes(votes: Iterable[Vote]) -> dict[str, list[Vote]]:
    """Rater -> acts that were not undone, skips included."""
    active: dict[str, list[Vote]] = {}
    for vote in votes:
        acts = active.setdefault(vote.rater, [])
        if vote.vote != "undo":
            acts.append(vote)
        elif acts:
            acts.pop()
    return active


def remaining_items(items: Sequence[int], votes: Sequence[Vote]) -> list[int]:
    """The `items` without one of these votes; skipped ones come last."""
    queue = dict.fromkeys(items)
    for vote in votes:
        if queue.pop(vote.item, 0) is None and vote.vote == "skip":
            queue[vote.item] = None
    return list(queue)


class VotesFile:
    """A JSONL file of votes, locked by one program at a time; made where it does not exist.

    StaleError for votes on another comparison, DataError for a broken line, InputError for a file that
    is something else or that another program has open.
    """

    def __init__(self, path: Path, pairs: Pairs) -> None:
        self.path = path
        self.votes: list[Vote] = []
        """all acts in the order of time"""
        in_use = InputError(f"{path} is being voted into already", "end that, or another --votes")
        self._file = AppendedFile(path, in_use)
        try:
            if not self._file.lines:
                self._file.append(pairs.header(secrets.randbelow(2**32)))
            self.seed = self._read(pairs)
            """of the order and the sides, the same for every run on this file"""
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, vote: Vote) -> None:
        """Append a vote. It is on the disk when this returns."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        vote = dataclasses.replace(vote, at=vote.at or now)
        self._file.append(dataclasses.asdict(vote))
        self.votes.append(vote)

    def _read(self, pairs: Pairs) -> int:
        """Fill `votes` from the file; the seed in its header."""
        seed = self._check_header(self._file.lines[0], pairs)
        if self._file.drop_partial_line():
            say(f"{self.path}: the last vote was written in part, it is asked again")
        self.votes = [
            _parse_vote(self.path, number, line, len(pairs.examples))
            for number, line in enumerate(self._file.lines[1:], 2)
        ]
        return seed

    def _check_header(self, line: bytes, pairs: Pairs) -> int:
        header: Any = None
        with contextlib.suppress(ValueError):
            header = json.loads(line)
        if not isinstance(header, dict) or not isinstance(header.get("seed"), int):
            raise InputError(f"{self.path} is not a file of votes", "another --votes")
        if header.get("votes") != SCHEMA:
            raise InputError(f"{self.path} was written by another edgeft", "another --votes")
        expected = pairs.header(header["seed"])
        parts = ("artifacts", "items", "answers")
        if other := [part for part in parts if not _same(header.get(part), expected[part])]:
            raise StaleError(
                f"{self.path} holds votes on other {' and other '.join(other)}", "another --votes"
            )
        return int(header["seed"])


def _same(one: Any, other: Any) -> bool:
    """Equal, apart from the names of artifacts: files may have been renamed since."""
    if isinstance(one, list) and isinstance(other, list):
        return [entry.get("identity") for entry in one] == [entry["identity"] for entry in other]
    return bool(one == other)


def _parse_vote(path: Path, number: int, line: bytes, items: int) -> Vote:
    try:
        vote = Vote(**json.loads(line))
        known = vote.vote in ACTS and vote.left in ARMS and isinstance(vote.rater, str)
        if known and type(vote.item) is int and 0 <= vote.item < items:
            return vote
    except (ValueError, TypeError):
        pass
    raise DataError(path, number, "not a vote", "delete the line")
