"""A reward model + a data file -> a score of every answer, and the accuracy on pairs.

rated = rate(Path("reward"), Path("pairs.jsonl"))
rated.rows[0]           # ("1", 0.83, -0.2): line, better and worse answer
rated.accuracy          # 0.91
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft.benchmarks.statistics.noninferiority import wilson
from edgeft.data.columns import parse_columns
from edgeft.data.encoding import encode
from edgeft.data.items import read_items
from edgeft.data.rows import BadRows, read_examples
from edgeft.records import Example
from edgeft.runtimes.gguf import GGUFRuntime
from edgeft.runtimes.protocol import checked_format
from edgeft.train.reward_model import RewardModel


@dataclass(frozen=True)
class Rated:
    """Scores of a file's rows, in its order."""

    rows: list[tuple[Any, ...]]
    """(line, score), or of pairs (line, score of the better answer, of the worse one)"""
    accuracy: float | None
    """of pairs: share whose better answer has the larger score; a tie counts half"""
    interval: tuple[float, float]
    """95 % (Wilson)"""

    def to_json(self) -> dict[str, Any]:
        names = ("line", "score") if self.accuracy is None else ("line", "chosen", "rejected")
        rows = [dict(zip(names, row, strict=True)) for row in self.rows]
        more = {"accuracy": self.accuracy, "interval": list(self.interval)}
        return {"rows": rows} | (more if self.accuracy is not None else {})


def rate(model: Path, data: Path, bad_rows: BadRows = "stop", columns: Sequence[str] = ()) -> Rated:
    """`model`: as `RewardModel.open`, or a .gguf with a head. The first row decides whether the file holds pairs.

    Raises as `RewardModel.open`, `GGUFRuntime` and `read_examples`.
    """
    first = next(iter(read_items([data], parse_columns(columns))), None)
    is_pairs = first is not None and first.kind == "preference"
    examples = read_examples(
        data, bad_rows, columns, layout="pairs" if is_pairs else "chats"
    ).examples
    worse = [dataclasses.replace(one, messages=one.rejected, rejected=()) for one in examples]
    scores = score_examples(model, [*examples, *(worse if is_pairs else ())])
    scores, others = scores[: len(examples)], scores[len(examples) :]
    places = [example.place for example in examples]
    if not is_pairs:
        return Rated(list(zip(places, scores, strict=True)), None, (0.0, 1.0))
    wins = sum((a > b) + (a == b) / 2 for a, b in zip(scores, others, strict=True))
    accuracy = wins / len(examples)
    rows = list(zip(places, scores, others, strict=True))
    return Rated(rows, accuracy, wilson(wins, len(examples)))


def score_examples(model: Path, examples: Sequence[Example]) -> list[float]:
    """A score of each conversation, to six digits."""
    if model.suffix == ".gguf":
        checked_format(model)
        with GGUFRuntime(model, rates=True) as runtime:
            ids = [encode(example, runtime.chat, runtime.encode).ids for example in examples]
            scores = runtime.scores(ids)
    else:
        scores = RewardModel.open(model).score_examples(examples)
    return [round(score, 6) for score in scores]
