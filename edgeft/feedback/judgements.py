"""What a judge said of rows with two answers: a line of JSONL each, read again, and their shares.

model, judged = resumed(lines, False, {"judgements": SCHEMA, …}, lambda: "judge-1")
judged[3].outcome                # "pair", or why row 3 is a tie
summary(list(judged.values()))["self_agreement"]
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft.appended_file import AppendedFile
from edgeft.benchmarks.statistics.noninferiority import wilson
from edgeft.errors import DataError, InputError, StaleError
from edgeft.progress import say

SCHEMA = 1
"""version of the file of judgements"""
Share = list[float]
"""[share, low, high]: 95 %, Wilson"""


@dataclass(frozen=True)
class Judgement:
    """What the judge said of one row: a line of the file of judgements."""

    line: int
    """of the row in its file, from 1"""
    prompt: list[dict[str, str]]
    """role and content of each message"""
    answers: tuple[str, str]
    why: str = ""
    """why the judge was not asked: the answers are equal, or one is empty or cut_off"""
    replies: tuple[str, ...] = ()
    """of the judge: the answers in their order, then in the other one"""
    verdicts: tuple[int | str | None, ...] = ()
    """of each reply: 0 or 1, the better of `answers`; "tie"; None where it names none"""
    preferred: int | None = None
    """by the row's own label"""

    @property
    def chosen(self) -> int | None:
        """0 or 1 where both verdicts name it; None for a tie."""
        one, *others = self.verdicts or (None,)
        return one if isinstance(one, int) and others == [one] else None

    @property
    def outcome(self) -> str:
        """pair, or why the row is a tie: `why`, ties, positions (the verdicts differ), unreadable."""
        if self.why:
            return self.why
        if None in self.verdicts:
            return "unreadable"
        if self.verdicts[0] != self.verdicts[1]:
            return "positions"
        return "ties" if self.chosen is None else "pair"

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"outcome": self.outcome}


def judgements_path(output: Path) -> Path:
    """The file that keeps what the judge said."""
    return output.with_suffix(".judgements.jsonl")


def summary(judgements: Sequence[Judgement]) -> dict[str, Any]:
    """The fields of `Labelled` but the output."""
    outcomes = collections.Counter(one.outcome for one in judgements)
    asked = [one for one in judgements if one.verdicts]
    # The first reply has answer 0 in front, the second one answer 1.
    firsts = [
        verdict == position
        for one in asked
        for position, verdict in enumerate(one.verdicts)
        if isinstance(verdict, int)
    ]
    agree = [one.verdicts[0] == one.verdicts[1] is not None for one in asked]
    labels = [
        one.chosen == one.preferred
        for one in judgements
        if one.chosen is not None and one.preferred is not None
    ]
    return {
        "rows": len(judgements),
        "pairs": outcomes["pair"],
        "outcomes": dict(sorted(outcomes.items())),
        "self_agreement": _share(agree),
        "first_position": _share(firsts),
        "label_agreement": _share(labels),
    }


def _share(flags: Sequence[bool]) -> Share | None:
    return [sum(flags) / len(flags), *wilson(sum(flags), len(flags))] if flags else None


def resumed(
    lines: AppendedFile, overwrite: bool, header: dict[str, Any], model: Callable[[], str]
) -> tuple[str, dict[int, Judgement]]:
    """(the judge's model, line of the row -> its judgement) of the file, which gets `header` where it is new.

    `model` names the judge's model for a new file. StaleError for another run's file, which `overwrite` clears;
    InputError for a file that is something else.
    """
    before = _parsed(lines.lines[0]) if lines.lines else {}
    if lines.lines and (not isinstance(before, dict) or not {"judgements", "model"} <= set(before)):
        raise InputError(f"{lines.path} is no file of judgements", "another --output")
    if lines.lines and before | json.loads(json.dumps(header)) != before:
        if not overwrite:
            raise StaleError(
                f"{lines.path} holds judgements of other answers, or by another judge",
                "--overwrite starts over; or another --output",
            )
        lines.clear()
    if not lines.lines:
        before = header | {"model": model()}
        lines.append(before)
    if lines.drop_partial_line():
        say(f"{lines.path}: the last judgement was written in part, it is asked for again")
    judged = {}
    for number, line in enumerate(lines.lines[1:], 2):
        try:
            values = _parsed(line)
            del values["outcome"]
            for name in ("answers", "replies", "verdicts"):
                values[name] = tuple(values[name])
            judged[values["line"]] = Judgement(**values)
        except (LookupError, TypeError):
            raise DataError(lines.path, number, "not a judgement", "delete the line") from None
    if judged:
        say(f"{lines.path}: {len(judged)} rows are judged already")
    return str(before["model"]), judged


def _parsed(line: bytes) -> Any:
    """The value of a line, None where it is no JSON."""
    try:
        return json.loads(line)
    except ValueError:
        return None
