"""Scores of two models on the same items -> numbers: verdicts, bounds, p values, retained gain.

Takes sequences of floats from 0 to 1 (1 = right), item by item in the same order; needs no model.
Sentences about the numbers are made in `edgeft.release.wording`.
"""

from edgeft.benchmarks.statistics.early_stop import SequentialTest
from edgeft.benchmarks.statistics.graded import judge_graded
from edgeft.benchmarks.statistics.noninferiority import (
    Ground,
    Outcome,
    Paired,
    Verdict,
    default_margin,
    judge,
    mid_p,
    wilson,
)
from edgeft.benchmarks.statistics.retention import Retention, measure_retention

__all__ = [
    "Ground",
    "Outcome",
    "Paired",
    "Retention",
    "SequentialTest",
    "Verdict",
    "default_margin",
    "judge",
    "judge_graded",
    "measure_retention",
    "mid_p",
    "wilson",
]
