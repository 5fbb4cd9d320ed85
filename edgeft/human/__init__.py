"""Blind votes of people on two artifacts -> a result."""

from edgeft.human.compare import Voting
from edgeft.human.tally import Result

__all__ = ["Result", "Voting"]
