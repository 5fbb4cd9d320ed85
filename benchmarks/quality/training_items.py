"""Items of a suite or a file -> the `AnswerItems` that a training run answers at every evaluation.

train(options, items=training_items(EvalOptions("smart_home", limit=50)))
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from edgeft.benchmarks.options import EvalOptions
from edgeft.benchmarks.quality.evaluate import load_items
from edgeft.benchmarks.quality.scorers import CHOICE, scorer_named, tool_call
from edgeft.benchmarks.suites import load_suite, suite_names, suite_tests
from edgeft.errors import InputError
from edgeft.files import is_file, sha256
from edgeft.train.answers import AnswerItems


def training_items(options: EvalOptions) -> AnswerItems:
    """Raises as `load_items`; InputError for a scorer that reads no answers."""
    items = load_items(options)
    if items.scorer == CHOICE:
        raise InputError("--eval-scorer choice reads no answers", "`edgeft bench` scores choices")
    score = scorer_named(items.scorer)
    reads_calls = score is tool_call
    return AnswerItems(items.examples, score, items.scorer, items.max_tokens, reads_calls)


def validation_of(options: EvalOptions) -> EvalOptions:
    """The same with a suite's validation split in place of its test split, which chooses nothing.

    InputError for a suite without one, and for a file that is the test split of a suite.
    """
    name = options.items or ""
    if name not in suite_names():
        path = Path(name)
        if is_file(path) and sha256(path) in {sha256(test) for test in suite_tests()}:
            raise InputError(f"{path} is a test split, and a winner is chosen by validation",
                             "name a validation split")  # fmt: skip
        return options
    suite = load_suite(name)
    if not suite.validation.is_file():
        raise InputError(f"{name} has no validation split", "--eval-items FILE")
    return dataclasses.replace(
        options,
        items=str(suite.validation),
        scorer=options.scorer or suite.scorer,
        max_tokens=options.max_tokens or suite.max_tokens,
    )
