"""Generators of exchanges -> the files of a task: splits without a text in common, instructions, scorer."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft.benchmarks.studies.tasks import (
    order_extract,
    order_number,
    support_intents,
    tool_calls,
)
from edgeft.benchmarks.suites import Suite
from edgeft.benchmarks.suites.smart_home.grammar import Row, normalise, to_jsonl
from edgeft.files import write_text

Exchange = tuple[str, str, tuple[str, ...]]
"""message, answer, tags"""


@dataclass(frozen=True)
class Generator:
    """How the rows of one task are drawn."""

    draw: Callable[[random.Random, str], Exchange | dict[str, Any]]
    """an exchange of a group: `seen`, or another one that only the test split has. A row of its own
    has tools, and its tags without the group"""
    splits: Mapping[str, Mapping[str, int]]
    """split -> group -> rows"""
    scorer: str
    max_tokens: int
    instructions: str


TASKS: dict[str, Generator] = {
    "support_intents": Generator(
        support_intents.draw,
        {"train": {"seen": 1000}, "validation": {"seen": 120}, "test": {"seen": 200, "new": 200}},
        "exact", 16, support_intents.INSTRUCTIONS,
    ),
    "order_extract": Generator(
        order_extract.draw,
        {"train": {"seen": 800}, "validation": {"seen": 100},
         "test": {"seen": 60, "new_words": 120, "new_phrases": 120}},
        "json", 160, order_extract.INSTRUCTIONS,
    ),
    "order_number": Generator(
        order_number.draw,
        {"train": {"seen": 300}, "validation": {"seen": 100}, "test": {"seen": 100, "new": 200}},
        "exact", 16, order_number.INSTRUCTIONS,
    ),
    "tool_calls": Generator(
        tool_calls.draw,
        {"train": {"seen": 900}, "validation": {"seen": 100},
         "test": {"seen": 100, "new_phrases": 100, "new_tools": 100}},
        "tool-call", 128, tool_calls.INSTRUCTIONS,
    ),
}  # fmt: skip


def write_task(name: str, out: Path, seed: int = 0) -> Suite:
    """Write the files of a task of `TASKS` into `out`/`name`; the same seed writes the same bytes."""
    task, folder = TASKS[name], out / name
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in rows_of(task, seed).items():
        write_text(folder / f"{split}.jsonl", to_jsonl(rows))
    write_text(folder / "instructions.txt", task.instructions)
    facts = {"name": name, "scorer": task.scorer, "max_tokens": task.max_tokens, "seed": seed}
    write_text(folder / "task.json", json.dumps(facts, indent=2) + "\n")
    return Suite(name, folder, task.scorer, task.max_tokens, task.instructions.strip())


def rows_of(task: Generator, seed: int) -> dict[str, list[Row]]:
    """All splits; no two rows share their message once case, marks and spaces are set aside."""
    rng, used = random.Random(seed), set[str]()
    splits: dict[str, list[Row]] = {}
    for split, counts in task.splits.items():
        rows: list[Row] = []
        for group, count in counts.items():
            end = len(rows) + count
            while len(rows) < end:
                drawn = task.draw(rng, group)
                row: Any = drawn if isinstance(drawn, dict) else _row(*drawn)
                text = normalise(row["messages"][0]["content"])
                if text not in used:
                    used.add(text)
                    row["tags"] = [*row["tags"], group]
                    rows.append(row)
        rng.shuffle(rows)
        splits[split] = rows
    return splits


def _row(text: str, answer: str, tags: Sequence[str]) -> Row:
    return {
        "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": answer}],
        "tags": list(tags),
    }
