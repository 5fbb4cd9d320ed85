"""Artifacts and items -> a verdict: the release gate, and the search for the smallest artifact that passes.

`run_gate` compares given candidates with a baseline; `run_search` exports the candidates of an
adapter first. Both return an `edgeft.records.Release`. `run_baseline` asks bases before any training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeft.release.options import BaselineOptions, GateOptions, SearchOptions

if TYPE_CHECKING:
    from edgeft.release.baseline import run_baseline
    from edgeft.release.gate import run_gate
    from edgeft.release.search import run_search

__all__ = [
    "BaselineOptions",
    "GateOptions",
    "SearchOptions",
    "run_baseline",
    "run_gate",
    "run_search",
]


def __getattr__(name: str) -> Any:
    """Imports the gate on first use: the options alone are for `--help`."""
    if name == "run_baseline":
        from edgeft.release import baseline

        return baseline.run_baseline
    if name == "run_gate":
        from edgeft.release import gate

        return gate.run_gate
    if name == "run_search":
        from edgeft.release import search

        return search.run_search
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
