"""Data files -> train, validation and test files, each row in the same one for ever (`split_files`).

result = split_files(SplitOptions(data=(Path("all.jsonl"),), output=Path("splits"), test=0.1))
result.splits       # {"train": 800, "validation": 100, "test": 100}

A row is placed by the hash of its group, so rows that are added later move no others. With `stratify` the
groups of each stratum are dealt out in the order of the file by the golden ratio's multiples, which lie
evenly: every stratum has its shares to a row or two, and rows that are appended still move no others.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgeft import store
from edgeft.data.columns import parse_columns
from edgeft.data.dataset import KIND, good_items, line_of, manifest_options, open_lines, parents_of
from edgeft.data.encoding import GOLDEN_RATIO
from edgeft.data.items import Item, read_items
from edgeft.data.options import SplitOptions
from edgeft.data.similar import hash64, normalized
from edgeft.data.sources import data_files
from edgeft.data.splits import fingerprint
from edgeft.errors import InputError, did_you_mean

MAX_STRATA = 10_000
SHOWN_STRATA = 50


@dataclass(frozen=True)
class SplitResult:
    """What `split_files` wrote."""

    output: str
    splits: dict[str, int]
    """train, validation, test -> rows"""
    strata: dict[str, dict[str, int]]
    """the commonest strata -> rows of each split; {} without `stratify`"""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class Placement:
    """Group and stratum of a row -> the split that it belongs to."""

    def __init__(self, shares: Mapping[str, float], seed: int) -> None:
        """`shares`: split -> share of the rows, without train, which has the rest."""
        self.shares = dict(shares)
        self.seed = seed
        self._groups: dict[int, str] = {}
        """of strata only: hash of a group -> its split"""
        self._dealt: collections.Counter[str] = collections.Counter()
        """stratum -> groups so far"""

    def split_of(self, group: str, stratum: str | None = None) -> str:
        """train, or a name of `shares`. `stratum`: None = placed by the hash of the group alone."""
        key = hash64(f"{self.seed}\0{group}")
        if stratum is None:
            return self._at(key / 2**64)
        if key not in self._groups:
            offset = hash64(f"{self.seed}\0stratum\0{stratum}") / 2**64
            self._groups[key] = self._at((offset + self._dealt[stratum] * GOLDEN_RATIO) % 1)
            self._dealt[stratum] += 1
        if len(self._dealt) > MAX_STRATA:
            raise InputError(
                f"more than {MAX_STRATA} different values to stratify by",
                "choose another --stratify",
            )
        return self._groups[key]

    def _at(self, place: float) -> str:
        for name, share in self.shares.items():
            if place < share:
                return name
            place -= share
        return "train"


def split_files(options: SplitOptions, overwrite: bool = False) -> SplitResult:
    """Write the splits. InputError where one of them would be empty; DataError for bad rows."""
    shares = {"test": options.test, "validation": options.validation}
    shares = {name: share for name, share in shares.items() if share}
    if not shares or any(share < 0 for share in shares.values()) or sum(shares.values()) >= 1:
        raise InputError(
            f"--validation {options.validation} and --test {options.test} leave no split or no "
            "training rows", "shares above 0 whose sum is below 1"
        )  # fmt: skip
    columns = parse_columns(options.columns)
    files = [file for path in options.data for file in data_files(path, "train")]
    parents, recorded = parents_of("data", files), manifest_options(options)
    if done := store.find_complete(options.output, KIND, recorded, parents):
        return SplitResult(str(options.output), **done.facts)
    placement = Placement(shares, options.seed)
    counts: collections.Counter[str] = collections.Counter()
    strata: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    with store.writing(
        options.output, kind=KIND, options=recorded, parents=parents, overwrite=overwrite
    ) as draft:
        with contextlib.ExitStack() as stack:
            names = ("train", *reversed(shares))
            lines = {n: stack.enter_context(open_lines(draft.path / f"{n}.jsonl")) for n in names}
            for item in good_items(read_items(files, columns), options.bad_rows):
                stratum = _value(item, options.stratify) if options.stratify else None
                split = placement.split_of(_value(item, options.group), stratum)
                lines[split].write(line_of(item.raw))
                counts[split] += 1
                if stratum is not None:
                    strata[stratum][split] += 1
        if empty := [name for name in names if not counts[name]]:
            raise InputError(
                f"the {empty[0]} split of {sum(counts.values())} rows is empty",
                "raise its share, or group by less",
            )
        commonest = sorted(strata, key=lambda name: -strata[name].total())[:SHOWN_STRATA]
        draft.facts |= {
            "splits": {name: counts[name] for name in names},
            "strata": {stratum: dict(strata[stratum]) for stratum in commonest},
        }
    return SplitResult(str(options.output), **draft.facts)


def _value(item: Item, what: str) -> str:
    """What a row is grouped or stratified by, as text. InputError for a column that it lacks."""
    assert item.example is not None
    if what == "question":
        return normalized(item.question)
    if what == "row":
        return fingerprint([item.example])
    if what == "answer":
        return item.answer.strip()
    if what == "tags":
        return ", ".join(item.example.tags)
    if not isinstance(item.raw, dict) or what not in item.raw:
        known = [*item.raw, "question", "row", "answer", "tags"]
        raise InputError(
            f"{item.file}:{item.line}: the row has no column {what!r}",
            did_you_mean(what, map(str, known)),
        )
    value = item.raw[what]
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
