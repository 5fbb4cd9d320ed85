"""Blind votes of people on two artifacts -> a result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeft.human.options import Voting

if TYPE_CHECKING:
    from edgeft.human.tally import Result

__all__ = ["Result", "Voting"]


def __getattr__(name: str) -> Any:
    """Imports the statistics on first use: the options alone are for `--help`."""
    if name == "Result":
        from edgeft.human import tally

        return tally.Result
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
