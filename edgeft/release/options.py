"""What the gate compares and how: the user's options, and one run of the gate made from them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeft.benchmarks.quality import evaluate
from edgeft.benchmarks.quality.evaluate import EvalOptions, Items
from edgeft.benchmarks.quality.refusals import load_refusals
from edgeft.benchmarks.quality.workers import Prefetch
from edgeft.benchmarks.statistics.noninferiority import default_margin
from edgeft.benchmarks.statistics.retention import DEFAULT_RHO
from edgeft.errors import InputError
from edgeft.formats import format_of
from edgeft.records import Memory, Speed


@dataclass(frozen=True)
class GateOptions:
    """What is compared with what; the options of `edgeft ab`."""

    candidates: tuple[Path, ...]
    baseline: Path
    base: Path | None = None
    """the model before the fine-tune; asked with instructions, with and without examples"""
    shots: int = 4
    """examples in the base's few-shot prompt; 0 = no few-shot run"""
    margin: float | None = None
    """acceptable loss of accuracy, as a fraction; None = chosen by the number of items"""
    keeps: float = DEFAULT_RHO
    """share of the fine-tune's gain that should be left"""
    early_stop: bool = False
    """stop as soon as the items seen decide"""
    refusals: Path | None = None
    """CSV of prompts to refuse and to answer"""
    speed: bool = False
    """measure speed and memory too"""
    fidelity: bool = False
    """compare the next-token distributions on the items' answers with the baseline's, too"""
    floor: bool = False
    """run the baseline again with another number of threads: differences by chance alone"""


@dataclass(frozen=True)
class GateRun:
    """All that a run of the gate fixes before the first answer."""

    options: GateOptions
    eval_options: EvalOptions
    items: Items
    refusal_items: Items | None
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
    margin = options.margin or default_margin(len(items.examples))
    if options.early_stop:  # the test needs items in random order
        order = list(range(len(items.examples)))
        random.Random(0).shuffle(order)
        items = items.part(order)
    refusal_items = load_refusals(options.refusals) if options.refusals else None
    names = evaluate.names_of(artifacts)
    return GateRun(options, eval_options, items, refusal_items, margin, names, timed, prefetch)
