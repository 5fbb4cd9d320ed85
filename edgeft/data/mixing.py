"""Several data files + weights -> one JSONL file with rows of all in these shares (`mix`).

result = mix(MixOptions(data=("task.jsonl=3", "other.jsonl"), output=Path("mix.jsonl"),
                        replay=(Path("general.jsonl"),), replay_share=0.1))
result.rows         # {"task.jsonl": 675, "other.jsonl": 225, "general.jsonl": 100}

Temperature: the shares of T5 (Raffel et al. 2020, https://arxiv.org/abs/1910.10683, 3.5.2). Which rows of a
file are taken is a selection sampling (Knuth, The Art of Computer Programming, 3.4.2, algorithm S): any
set of k rows is equally likely, and no row is held in memory. The files are read twice.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft import store
from edgeft.data.dataset import (
    KIND,
    check_jsonl,
    good_items,
    line_of,
    manifest_options,
    open_lines,
    parents_of,
)
from edgeft.data.hub import pinned
from edgeft.data.items import read_items
from edgeft.data.options import MixOptions
from edgeft.data.rows import BadRows
from edgeft.data.sources import data_files
from edgeft.errors import InputError


@dataclass(frozen=True)
class Source:
    """A file or folder of a mix."""

    path: Path
    files: tuple[Path, ...]
    available: int
    """rows that it has"""
    share: float
    """of the rows of the mix"""


@dataclass(frozen=True)
class MixResult:
    """What `mix` wrote."""

    output: str
    rows: dict[str, int]
    """file -> rows in the mix"""
    available: dict[str, int]
    """file -> rows that it has; fewer than in the mix: some are there more than once"""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def weighted(words: Sequence[str]) -> list[tuple[Path, float]]:
    """FILE or FILE=WEIGHT -> (file, weight). InputError for a weight that is no positive number."""
    pairs = []
    for word in words:
        name, equals, weight = word.rpartition("=")
        if not equals or Path(word).exists():
            pairs.append((Path(word), 1.0))
            continue
        try:
            value = float(weight)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise InputError(
                f"{word}: {weight!r} is no weight", "FILE=WEIGHT with a number above 0"
            )
        pairs.append((Path(name), value))
    return pairs


def mix(options: MixOptions, overwrite: bool = False) -> MixResult:
    """Write the mix. InputError for contradictory shares, DataError for bad rows."""
    check_jsonl(options.output)
    pairs = weighted(options.data)
    has_weights = any(weight != 1 for _, weight in pairs)
    if options.temperature is not None and (has_weights or not 0 < options.temperature < math.inf):
        raise InputError("--temperature is a number above 0 in place of weights", "leave one out")
    if options.replay and not 0 < options.replay_share < 1:
        raise InputError(f"--replay-share {options.replay_share} is no share", "between 0 and 1")
    if options.rows is not None and options.rows < 1:
        raise InputError("--rows must be positive")
    paths = [path for path, _ in pairs] + list(options.replay)
    if len(set(paths)) < len(paths):
        raise InputError("one file is named twice", "a weight of 2 counts it twice")
    files = [tuple(data_files(path, "train")) for path in paths]
    parents = parents_of("data", [f for some in files[: len(pairs)] for f in some])
    replayed = [f for some in files[len(pairs) :] for f in some]
    parents |= parents_of("replay", replayed) if replayed else {}
    words = zip(options.data, paths, strict=False)
    data = [word.replace(str(path), str(pinned(path)), 1) for word, path in words]
    recorded = manifest_options(options, data=data)
    if done := store.find_complete(options.output, KIND, recorded, parents):
        return MixResult(str(options.output), **done.facts)
    store.check_not_foreign(options.output, overwrite)
    available = [sum(1 for _ in good_items(read_items(some), options.bad_rows)) for some in files]
    for path, count in zip(paths, available, strict=True):
        if not count:
            raise InputError(f"{path} holds no rows that can be learned", "leave it out")
    shares = _shares(options, [weight for _, weight in pairs], available)
    sources = [Source(*facts) for facts in zip(paths, files, available, shares, strict=True)]
    counts = row_counts(sources, options.rows)
    with store.writing(
        options.output, kind=KIND, options=recorded, parents=parents, overwrite=overwrite
    ) as draft:
        with open_lines(draft.path) as lines:
            lines.writelines(_lines(sources, counts, options))
        names = [str(path) for path in paths]
        draft.facts |= {
            "rows": dict(zip(names, counts, strict=True)),
            "available": dict(zip(names, available, strict=True)),
        }
    return MixResult(str(options.output), **draft.facts)


def _shares(options: MixOptions, weights: list[float], available: list[int]) -> list[float]:
    """The share of each file, those of --replay last."""
    if options.temperature is not None:
        weights = [rows ** (1 / options.temperature) for rows in available[: len(weights)]]
    general = available[len(weights) :]
    rest = 1 - options.replay_share if general else 1.0
    shares = [rest * weight / sum(weights) for weight in weights]
    return shares + [options.replay_share * rows / sum(general) for rows in general]


def row_counts(sources: Sequence[Source], rows: int | None) -> list[int]:
    """Rows of each source, at least one. Without `rows`: the most without a row twice."""
    total = rows or min(math.floor(source.available / source.share + 1e-9) for source in sources)
    counts = [math.floor(source.share * total + 1e-9) for source in sources]
    by_rest = sorted(range(len(sources)), key=lambda i: counts[i] - sources[i].share * total)
    for i in by_rest[: total - sum(counts)]:
        counts[i] += 1
    if 0 in counts:
        path = sources[counts.index(0)].path
        raise InputError(
            f"{path} has no row among the {total} of the mix", "raise --rows or its weight"
        )
    return counts


def _lines(sources: Sequence[Source], counts: Sequence[int], options: MixOptions) -> Iterator[str]:
    """The rows of all sources, evenly interleaved."""
    tags = [source.path.name.partition(".")[0] if options.tag else "" for source in sources]
    streams = [
        chosen_rows(source, count, options.seed + i, options.bad_rows)
        for i, (source, count) in enumerate(zip(sources, counts, strict=True))
    ]
    written = [0] * len(sources)
    for _ in range(sum(counts)):
        i = min(range(len(sources)), key=lambda i: (written[i] + 0.5) / counts[i])
        written[i] += 1
        yield line_of(_tagged(next(streams[i]), tags[i]))


def chosen_rows(source: Source, count: int, seed: int, bad_rows: BadRows) -> Iterator[Any]:
    """`count` rows of a source in its order: all of them as often as they fit, then a sample."""
    rng = random.Random(seed)
    while count > 0:
        needed, left = min(count, source.available), source.available
        count -= needed
        for item in good_items(read_items(source.files), bad_rows):
            if rng.random() * left < needed:
                needed -= 1
                yield item.raw
            left -= 1


def _tagged(raw: Any, tag: str) -> Any:
    tags = raw.get("tags") if isinstance(raw, dict) else None
    if not tag or tags is not None and not isinstance(tags, list) or tag in (tags or ()):
        return raw
    return raw | {"tags": [*(tags or ()), tag]}
