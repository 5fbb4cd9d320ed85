"""The gate's options -> one run of the gate: checked artifacts, loaded items, the margin."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeft.benchmarks.options import EvalOptions
from edgeft.benchmarks.quality import evaluate
from edgeft.benchmarks.quality.evaluate import Items
from edgeft.benchmarks.quality.refusals import load_refusals
from edgeft.benchmarks.quality.workers import Prefetch
from edgeft.benchmarks.statistics.noninferiority import default_margin
from edgeft.errors import InputError
from edgeft.formats import format_of
from edgeft.records import Memory, Speed
from edgeft.release.forgetting import load_general
from edgeft.release.options import GateOptions


@dataclass(frozen=True)
class GateRun:
    """All that a run of the gate fixes before the first answer."""

    options: GateOptions
    eval_options: EvalOptions
    items: Items
    refusal_items: Items | None
    general_items: Items | None
    margin: float
    names: Mapping[Path, str]
    """artifact -> its name in the report"""
    timed: Mapping[Path, tuple[Speed, Memory]]
    """artifacts whose speed and memory were measured earlier"""
    prefetch: Prefetch | None
    """answers several candidates at once and caches their scores"""


def prepare(
    options: GateOptions,
    eval_options: EvalOptions,
    timed: Mapping[Path, tuple[Speed, Memory]],
    prefetch: Prefetch | None,
) -> GateRun:
    """Check the artifacts and load the items; InputError for bad input, before any long work."""
    artifacts = (*options.candidates, options.baseline)
    for path in (*artifacts, *filter(None, [options.base])):
        format_of(path)
    resolved = [path.resolve() for path in artifacts]
    if twice := [path for i, path in enumerate(resolved) if path in resolved[:i]]:
        raise InputError(f"{twice[0]} is there twice", "CANDIDATE... BASELINE, all different")
    items = evaluate.load_items(eval_options)
    general_items = load_general(options, eval_options)
    margin = options.margin or default_margin(len(items.examples))
    if options.early_stop:  # the test needs items in random order
        order = list(range(len(items.examples)))
        random.Random(0).shuffle(order)
        items = items.part(order)
    refusal_items = load_refusals(options.refusals) if options.refusals else None
    names = evaluate.names_of(artifacts)
    return GateRun(
        options, eval_options, items, refusal_items, general_items, margin, names, timed, prefetch
    )
