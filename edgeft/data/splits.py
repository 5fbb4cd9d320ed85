"""Examples -> training and validation split, and both again from the manifest of an adapter.

train, validation = load_splits(Path("chats.jsonl"), None, validation_size=0.05, seed=0)
validation_examples(manifest.options)       # of a trained adapter, the same examples
"""

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
    """(train, validation), each in the order of `examples`.

    `validation_size`: a share below 1, a count from 1; 0 = no validation. The same examples, size
    and seed always give the same split. InputError where either part would be empty.
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
    validation = set(order[:count])
    train = [example for i, example in enumerate(examples) if i not in validation]
    return train, [examples[i] for i in sorted(validation)]


def fingerprint(examples: Sequence[Example]) -> str:
    """sha256 of the conversations and their choices, in order; tags and lines do not count.

    Two scores are compared only where their examples have the same fingerprint.
    """
    digest = hashlib.sha256()
    for example in examples:
        turns = [[message.role, message.content] for message in example.messages]
        turns += [list(example.choices)] if example.choices else []
        digest.update(json.dumps(turns).encode() + b"\n")
    return digest.hexdigest()


def load_splits(
    data: Path, validation_data: Path | None, validation_size: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """(train, validation): `data` and `validation_data`, or without the latter a `split` of `data`."""
    examples = load_examples(data)
    if validation_data:
        return examples, load_examples(validation_data)
    return split(examples, validation_size, seed)


def training_examples(options: dict[str, Any]) -> list[Example]:
    """The training split of an adapter; `options`: those of its manifest."""
    if options.get("validation_data"):
        return load_examples(Path(options["data"]))
    return _recorded_splits(options)[0]


def validation_examples(options: dict[str, Any]) -> list[Example]:
    """The validation split of an adapter; `options`: those of its manifest."""
    if options.get("validation_data"):
        return load_examples(Path(options["validation_data"]))
    return _recorded_splits(options)[1]


def _recorded_splits(options: dict[str, Any]) -> tuple[list[Example], list[Example]]:
    return load_splits(Path(options["data"]), None, options["validation_size"], options["seed"])
