"""Two artifacts and items -> blind votes of people on a web page -> a result with statistics.

`run_voting` needs the extra `serve`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeft.human.options import VotingOptions

if TYPE_CHECKING:
    from edgeft.human.tally import Result, count_votes, result_text
    from edgeft.human.votes import Pairs, Vote, VotesFile
    from edgeft.human.voting import run_voting

__all__ = [
    "Pairs",
    "Result",
    "Vote",
    "VotesFile",
    "VotingOptions",
    "count_votes",
    "result_text",
    "run_voting",
]


def __getattr__(name: str) -> Any:
    """Import the statistics on first use: `edgeft ab --help` needs the options alone."""
    if name in __all__:
        from edgeft.human import tally, votes, voting

        return next(vars(m)[name] for m in (tally, votes, voting) if name in vars(m))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
