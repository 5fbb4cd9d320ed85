"""Examples -> training and validation split, and both again from the manifest of an adapter.

splits = load_splits(Path("chats.jsonl"), None, validation_size=0.05, seed=0)
splits.train, splits.validation
validation_examples(manifest.options)       # of a trained adapter, the same examples
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from edgeft.data.layouts import Layout, layout_of
from edgeft.data.rows import BadRows, ExampleFile, load_examples, read_examples
from edgeft.errors import InputError
from edgeft.records import Example, Message


@dataclass(frozen=True)
class Splits:
    """The examples of a training run."""

    train: list[Example]
    validation: list[Example]
    files: dict[str, ExampleFile]
    """data, and validation_data where there is one -> the file that was read"""


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
    """sha256 of the conversations, their tools, choices and worse answers, in order; tags and lines do not count.

    Two scores are compared only where their examples have the same fingerprint.
    """
    digest = hashlib.sha256()
    for example in examples:
        turns: list[Any] = [_turn(message) for message in example.messages]
        turns += [list(example.choices)] if example.choices else []
        turns += [{"tools": example.tools}] if example.tools else []
        turns += [] if example.desirable is None else [{"desirable": example.desirable}]
        turns += (
            [{"rejected": [_turn(turn) for turn in example.rejected]}] if example.rejected else []
        )
        digest.update(json.dumps(turns).encode() + b"\n")
    return digest.hexdigest()


def _turn(message: Message) -> list[Any]:
    """[role, content], and an object of what else the message has."""
    extras = {key: getattr(message, key) for key in ("reasoning", "name", "tool_call_id")}
    extras |= {"tool_calls": [vars(call) for call in message.tool_calls]}
    extras |= {} if message.learned else {"learned": [False]}
    extras = {key: value for key, value in extras.items() if value}
    return [message.role, message.content, *([extras] if extras else [])]


def load_splits(
    data: Path,
    validation_data: Path | None,
    validation_size: float,
    seed: int,
    bad_rows: BadRows = "stop",
    columns: Sequence[str] = (),
    layout: Layout = "chats",
) -> Splits:
    """`data` and `validation_data`, or without the latter a `split` of `data`.

    `layout`: of the rows.
    """
    files = {"data": read_examples(data, bad_rows, columns, "train", layout)}
    examples = files["data"].examples
    if validation_data:
        files["validation_data"] = read_examples(
            validation_data, bad_rows, columns, "validation", layout
        )
        return Splits(examples, files["validation_data"].examples, files)
    return Splits(*split(examples, validation_size, seed), files)


def training_examples(options: dict[str, Any]) -> list[Example]:
    """The training split of an adapter; `options`: those of its manifest."""
    if options.get("validation_data"):
        path = Path(options["data"])
        return load_examples(
            path, _bad_rows(options), _columns(options), "train", layout_of(options)
        )
    return _recorded_splits(options).train


def validation_examples(options: dict[str, Any]) -> list[Example]:
    """The validation split of an adapter; `options`: those of its manifest."""
    if options.get("validation_data"):
        path = Path(options["validation_data"])
        return load_examples(
            path, _bad_rows(options), _columns(options), "validation", layout_of(options)
        )
    return _recorded_splits(options).validation


def _recorded_splits(options: dict[str, Any]) -> Splits:
    size, seed = options["validation_size"], options["seed"]
    columns = _columns(options)
    rest = (_bad_rows(options), columns, layout_of(options))
    return load_splits(Path(options["data"]), None, size, seed, *rest)


def _bad_rows(options: dict[str, Any]) -> BadRows:
    """Manifests name the rule only where it is another than the default."""
    return cast(BadRows, options.get("bad_rows", "stop"))


def _columns(options: dict[str, Any]) -> Sequence[str]:
    """Manifests name a mapping only where there is one."""
    return cast(Sequence[str], options.get("columns", ()))
