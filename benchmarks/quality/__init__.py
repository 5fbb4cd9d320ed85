"""Artifacts and items (a suite, a data file or refusal prompts) -> a Score with one value per item."""

from edgeft.benchmarks.options import EvalOptions
from edgeft.benchmarks.quality.evaluate import Items, load_items, measure
from edgeft.benchmarks.quality.fewshot import FewShot
from edgeft.benchmarks.quality.refusals import load_refusals
from edgeft.benchmarks.quality.scorers import SCORERS, scorer_named
from edgeft.benchmarks.quality.workers import Prefetch, open_workers

__all__ = [
    "SCORERS",
    "EvalOptions",
    "FewShot",
    "Items",
    "Prefetch",
    "load_items",
    "load_refusals",
    "measure",
    "open_workers",
    "scorer_named",
]
