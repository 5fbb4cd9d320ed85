"""Divide examples into train and validation; find the split that a training run recorded."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeft.data.rows import load_examples
from edgeft.errors import InputError
from edgeft.records import Example


def split(
    examples: Sequence[Example], validation_size: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """(train, validation): `validation_size` is a share below 1, a count from 1; 0 = none.

    The same seed and file always give the same split.
    """
    count = round(len(examples) * validation_size) if validation_size < 1 else int(validation_size)
    if count >= len(examples):
        raise InputError(
            f"a validation split of {count} leaves nothing of {len(examples)} examples to train on",
            "lower --validation-size",
        )
    if validation_size > 0 and count == 0:
        raise InputError(
            f"a validation share of {validation_size} of {len(examples)} examples is empty",
            "raise --validation-size, or set it to 0",
        )
    order = list(range(len(examples)))
    random.Random(seed).shuffle(order)
    held = set(order[:count])
    train = [example for i, example in enumerate(examples) if i not in held]
    return train, [examples[i] for i in sorted(held)]


def fingerprint(examples: Sequence[Example]) -> str:
    """sha256 over the conversations in order; two arms are compared only on equal ones."""
    digest = hashlib.sha256()
    for example in examples:
        turns = [[message.role, message.content] for message in example.messages]
        turns += [list(example.choices)] if example.choices else []
        digest.update(json.dumps(turns).encode() + b"\n")
    return digest.hexdigest()


def load_splits(
    data: Path, validation_data: Path | None, validation_size: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """(train, validation) of a data file: from a second file where one is given, else by `split`."""
    examples = load_examples(data)
    if validation_data:
        return examples, load_examples(validation_data)
    return split(examples, validation_size, seed)


def training_examples(options: dict[str, Any]) -> list[Example]:
    """The training split of a finished adapter again, from its manifest's options."""
    if options.get("validation_data"):
        return load_examples(Path(options["data"]))
    return _recorded_splits(options)[0]


def validation_examples(options: dict[str, Any]) -> list[Example]:
    """The validation split of a finished adapter again, from its manifest's options."""
    if options.get("validation_data"):
        return load_examples(Path(options["validation_data"]))
    return _recorded_splits(options)[1]


def _recorded_splits(options: dict[str, Any]) -> tuple[list[Example], list[Example]]:
    return load_splits(Path(options["data"]), None, options["validation_size"], options["seed"])
