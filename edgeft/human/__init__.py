"""Two artifacts and items -> blind votes of people on a web page -> a result with statistics.

`run_voting` needs the extra `serve`.
"""

from edgeft.human.tally import Result, count_votes, result_text
from edgeft.human.votes import Pairs, Vote, VotesFile
from edgeft.human.voting import VotingOptions, run_voting

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
