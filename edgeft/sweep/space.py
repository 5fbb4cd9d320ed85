"""The values of a sweep -> their combinations, as JSON and back, and every fault before a trial starts.

check(options)                                    # InputError, as a trial would raise
values = plain_values(next(combinations(options.space)))
resolve(options, values, output)                  # TrainRun
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgeft.data.encoded_rows import EncodedRows
from edgeft.data.layouts import LAYOUTS
from edgeft.data.splits import Splits
from edgeft.errors import EdgeftError, InputError
from edgeft.sweep.options import Range, Space, SweepOptions
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import encoder
from edgeft.train.examples import encode_held_out, read_splits
from edgeft.train.new_tokens import tokenizer_folder
from edgeft.train.optimizers import check_optimizer
from edgeft.train.options import TrainOptions
from edgeft.train.parallel import check_parallel
from edgeft.train.registry import OBJECTIVE_OPTIONS
from edgeft.train.reporters import check_reporters
from edgeft.train.resolve import TrainRun, resolve_run
from edgeft.train.run import identities
from edgeft.train.ship import check_type

MAX_CHECKED = 2000
"""combinations that are checked before a sweep; the values of a range are represented by its ends"""
VALIDATED_ON = (
    "base", "data", "validation_data", "validation_size", "bad_rows", "columns", "seed",
    "cutoff_length", "add_tokens", *OBJECTIVE_OPTIONS,
)  # fmt: skip
"""fields that can change the tokens of the validation examples, or the formula of their loss"""
Values = dict[str, Any]
"""field -> the value of one trial as JSON has it: a text, a number or a truth value"""


def plain(value: Any) -> Any:
    """A typed value as JSON has it: a path as text, a tuple joined by commas."""
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value) if isinstance(value, Path) else value


def combinations(space: Space) -> Iterator[Values]:
    """Every combination, the last name's values first; of a range its ends."""
    choices = [
        (values.low, values.high) if isinstance(values, Range) else map(plain, values)
        for values in space.values()
    ]
    return (
        dict(zip(space, combination, strict=True)) for combination in itertools.product(*choices)
    )


def size(space: Space) -> float:
    """Number of combinations; infinite with a range."""
    return math.prod(
        math.inf if isinstance(values, Range) else len(values) for values in space.values()
    )


def resolve(options: SweepOptions, values: Mapping[str, Any], output: Path) -> TrainRun:
    """The training of one trial, whose result goes to `output`. Raises as `resolve_run`."""
    typed = {}
    for name, value in values.items():
        choices = options.space[name]
        if isinstance(choices, Range):
            typed[name] = value
        else:
            typed[name] = next(choice for choice in choices if plain(choice) == value)
    return resolve_run({**options.run, **typed, "output": output})


def named(values: Mapping[str, Any]) -> str:
    """Values for a person: `lora-r 8, learning-rate 0.0002`."""
    return ", ".join(f"{name.replace('_', '-')} {shown(value)}" for name, value in values.items())


def shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def check(options: SweepOptions) -> dict[str, str]:
    """Refuse what a training would refuse, and trials whose measures cannot be compared.

    Returns the identities of bases and data files: path -> sha256.
    """
    validated: dict[str, str] = {}
    parents: dict[str, str] = {}
    for values in itertools.islice(combinations(options.space), MAX_CHECKED):
        try:
            run = resolve(options, values, options.output / "trials" / "0")
            check_optimizer(run.options)
            check_parallel(run.options, run.method, run.objective, watched=True)
            check_reporters(run.options.report_to)
            if run.options.ship:
                check_type(run.options.ship)
            key = _validated_on(run)
            if key not in validated:
                validated[key], found = _validation(run)
                parents |= found
        except EdgeftError as error:
            raise InputError(f"{named(values)}: {error.message}", error.hint) from None
        first = next(iter(validated))
        if options.lower_is_better and validated[key] != validated[first]:
            _refuse_other_validation(json.loads(first), json.loads(key))
    return parents


def _validated_on(run: TrainRun) -> str:
    """JSON of what can change the validation loss of the same model."""
    fields = {name: plain(getattr(run.options, name)) for name in VALIDATED_ON}
    return json.dumps({**fields, "objective": run.objective})


def _validation(run: TrainRun) -> tuple[str, dict[str, str]]:
    """(sha256 of the validation examples' tokens and the options of their loss, identities of the inputs by path)."""
    options, splits = read_splits(run.options, LAYOUTS[run.objective])
    if not splits.validation:
        raise InputError("there is no validation to choose by", "validation-size = 0.05")
    inputs = identities(options, run.objective)
    by_path = {str(getattr(options, field)): identity for field, identity in inputs.items()}
    return _tokens_sha256(options, splits), by_path


def _tokens_sha256(options: TrainOptions, splits: Splits) -> str:
    folder = tokenizer_folder(options)
    chat, tokenize = ChatTemplate.from_folder(folder), encoder(folder)
    encoded, _ = encode_held_out(splits.validation, chat, tokenize, options.cutoff_length)
    formula = [getattr(options, name) for name in OBJECTIVE_OPTIONS]
    digest = hashlib.sha256(json.dumps(formula).encode())
    for item in (
        encoded
        if isinstance(encoded, EncodedRows)
        else itertools.chain(encoded.chosen, encoded.rejected)
    ):
        digest.update(json.dumps([item.ids, item.labels]).encode())
    return digest.hexdigest()


def _refuse_other_validation(first: dict[str, Any], other: dict[str, Any]) -> None:
    listed = " and ".join(name.replace("_", "-") for name in first if first[name] != other[name])
    raise InputError(
        f"{listed}: the trials would compute their validation loss on other tokens or by another "
        "formula, so that it compares nothing",
        "validation-data = 'FILE', or measure = 'accuracy' with eval-items",
    )
