"""The options of blind votes. The string after a field is the help of its option."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class VotingOptions:
    """How people are asked: the options of `edgeft ab --human`."""

    votes: Path | None = None
    """With --human: JSONL file that the votes are kept in. Default: A-B.votes.jsonl in the current
    folder."""
    rater: str = ""
    """With --human: name of the person who votes, where several people do."""
    port: int = 0
    """With --human: port of the page; 0 = a free one."""
    browser: bool = True
    """With --human: open the page in the default browser, or only print its address."""
