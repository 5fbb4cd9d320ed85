"""Artifacts and items -> a verdict: the release gate, and the search for the smallest artifact that passes.

`run_gate` compares given candidates with a baseline; `run_search` exports the candidates of an adapter
first. Both return an `edgeft.records.Release`.
"""

from edgeft.release.gate import run_gate
from edgeft.release.options import GateOptions
from edgeft.release.search import SearchOptions, run_search

__all__ = ["GateOptions", "SearchOptions", "run_gate", "run_search"]
