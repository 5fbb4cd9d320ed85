"""Blind votes: the order in which pairs of answers are shown, and the file that votes are kept in.

    pairs = Pairs(names, identities, examples, (one, other))
    with VotesFile(Path("votes.jsonl"), pairs) as file:
        file.add(Vote(item=3, vote="a", rater="kim", left="b"))
        left_to_ask(pairs.order(file.seed), file.votes, "kim")

The first line of the file says what is compared, each further line is one act of a rater; nothing is
ever rewritten, so a killed program loses at most the line that it was writing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
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
from edgeft.data.splits import fingerprint
from edgeft.errors import DataError, InputError, StaleError
from edgeft.progress import say
from edgeft.records import Example, Score

ARMS = ("a", "b")
VOTES = (*ARMS, "tie", "bad")
"""bad: neither answer will do"""
ACTS = (*VOTES, "skip", "undo")
SCHEMA = 1


@dataclass(frozen=True)
class Pairs:
    """Two arms' answers to the same items."""

    names: tuple[str, str]
    identities: tuple[str, str]
    """of the artifacts (`edgeft.store.identity`)"""
    examples: tuple[Example, ...]
    scores: tuple[Score, Score]

    def replies(self, item: int) -> tuple[str, str]:
        one, other = self.scores
        return one.replies[item], other.replies[item]

    @cached_property
    def identical(self) -> frozenset[int]:
        """Items on which both say the same: ties that nobody need be asked about."""
        items = range(len(self.examples))
        return frozenset(i for i in items if len(set(self.replies(i))) == 1)

    def order(self, seed: int) -> list[int]:
        """All items, shuffled; the same for every rater, so that they meet on the first ones."""
        items = list(range(len(self.examples)))
        random.Random(seed).shuffle(items)
        return items

    def sides(self, seed: int, rater: str) -> dict[int, str]:
        """Item -> the arm on the left: each on half of the pairs, drawn anew for each rater."""
        asked = [item for item in self.order(seed) if item not in self.identical]
        drawn = random.Random(f"{seed} {rater}")
        first = drawn.choice(ARMS)
        left = [ARMS[(i + ARMS.index(first)) % 2] for i in range(len(asked))]
        drawn.shuffle(left)
        return dict(zip(asked, left, strict=True))

    def header(self, seed: int) -> dict[str, Any]:
        said = hashlib.sha256(json.dumps([score.replies for score in self.scores]).encode())
        return {
            "votes": SCHEMA,
            "artifacts": [
                {"name": name, "identity": identity}
                for name, identity in zip(self.names, self.identities, strict=True)
            ],
            "items": fingerprint(self.examples),
            "answers": said.hexdigest(),
            "seed": seed,
            "edgeft": __version__,
        }


@dataclass(frozen=True)
class Vote:
    item: int
    """number in the list of items, from 0"""
    vote: str
    """a or b is better, tie, bad; skip asks again later, undo takes the rater's last act back"""
    rater: str
    left: str
    """arm that stood on the left"""
    at: str = ""


def standing(votes: Iterable[Vote]) -> dict[str, list[Vote]]:
    """Rater -> his acts, without what he took back."""
    kept: dict[str, list[Vote]] = {}
    for vote in votes:
        own = kept.setdefault(vote.rater, [])
        if vote.vote != "undo":
            own.append(vote)
        elif own:
            own.pop()
    return kept


def left_to_ask(asked: Sequence[int], own: Sequence[Vote]) -> list[int]:
    """Of the items `asked`, those that a rater has not voted on; what he skipped comes last."""
    queue = dict.fromkeys(asked)
    for vote in own:
        if queue.pop(vote.item, 0) is None and vote.vote == "skip":
            queue[vote.item] = None
    return list(queue)


class VotesFile:
    """A JSONL file of votes, open for one program at a time.

    StaleError for a file of another comparison, InputError for one that holds no votes or is open.
    """

    def __init__(self, path: Path, pairs: Pairs) -> None:
        self.path = path
        self.votes: list[Vote] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self._file = path.open("r+b", buffering=0)
        try:
            self._lock()
            if not path.stat().st_size:
                self._append(pairs.header(secrets.randbelow(2**32)))
                self._file.seek(0)
            self.seed = self._read(pairs)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._file.close()

    def add(self, vote: Vote) -> None:
        """On the disk when this returns."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        vote = dataclasses.replace(vote, at=vote.at or now)
        self._append(dataclasses.asdict(vote))
        self.votes.append(vote)

    def _append(self, value: dict[str, Any]) -> None:
        """On the disk when this returns; nothing of it where it cannot be written whole."""
        end = self._file.seek(0, os.SEEK_END)
        line = (json.dumps(value) + "\n").encode()
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(end)
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"{self.path} is being voted into already", "end that, or another --votes"
            ) from None

    def _read(self, pairs: Pairs) -> int:
        first, *lines = self._file.read().splitlines(keepends=True)
        header: Any = None
        with contextlib.suppress(ValueError):
            header = json.loads(first)
        if not isinstance(header, dict) or not isinstance(header.get("seed"), int):
            raise InputError(f"{self.path} is not a file of votes", "another --votes")
        if header.get("votes") != SCHEMA:
            raise InputError(f"{self.path} was written by another edgeft", "another --votes")
        wanted = pairs.header(header["seed"])
        kinds = ("artifacts", "items", "answers")
        if other := [kind for kind in kinds if not _same(header.get(kind), wanted[kind])]:
            raise StaleError(
                f"{self.path} holds votes on other {' and other '.join(other)}", "another --votes"
            )
        if lines and not lines[-1].endswith(b"\n"):
            self._file.seek(-len(lines.pop()), os.SEEK_END)
            self._file.truncate()
            say(f"{self.path}: the last vote was written in part, it is asked again")
        self.votes = [_vote(self.path, number, line, len(pairs.examples))
                      for number, line in enumerate(lines, 2)]  # fmt: skip
        return int(header["seed"])


def _same(one: Any, other: Any) -> bool:
    """Artifacts may have been renamed since."""
    if isinstance(one, list) and isinstance(other, list):
        return [entry.get("identity") for entry in one] == [entry["identity"] for entry in other]
    return bool(one == other)


def _vote(path: Path, number: int, line: bytes, items: int) -> Vote:
    try:
        vote = Vote(**json.loads(line))
        known = vote.vote in ACTS and vote.left in ARMS and isinstance(vote.rater, str)
        if known and type(vote.item) is int and 0 <= vote.item < items:
            return vote
    except (ValueError, TypeError):
        pass
    raise DataError(path, number, "not a vote", "delete the line")
