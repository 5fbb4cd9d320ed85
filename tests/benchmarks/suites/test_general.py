"""The general suite: every item has one kind, a scorer, and an answer that its scorer accepts."""

from __future__ import annotations

import collections
import re

import pytest

from edgeft.benchmarks.options import EvalOptions
from edgeft.benchmarks.quality.evaluate import load_items
from edgeft.benchmarks.quality.scorers import scorers_by_tag
from edgeft.benchmarks.suites import load_suite

pytestmark = pytest.mark.unit

ITEMS = load_items(EvalOptions("general"))
SCORERS = scorers_by_tag(ITEMS.scorer)
KINDS = {"instruction": 22, "arithmetic": 16, "reading": 16, "json": 12, "refusal": 16}
FOLLOWED = [
    "Yes.", "BANANA", "apple, pear, red plum", "- red\n- green\n- blue\n- pink",
    "The sea is wide and blue!", "Good morning.", "1 2 3 4 5", "How far away is the moon?",
    '"Hello"', "abcde", "The train leaves at noon.", "Cat", "Certainly, it crosses a river.",
    "Bees make honey. Done.", "1. a cat\n2. a dog", "The sky is blue.", "pots",
    "The opposite of hot is cold.", "[A Long Winter]", "Children", "apple, mango, pear",
    "The river meets another river here.",
]  # fmt: skip
"""an answer that keeps the rule of each instruction item, in their order"""


def test_the_kinds_and_their_counts_are_those_of_the_readme() -> None:
    assert collections.Counter(example.tags[0] for example in ITEMS.examples) == KINDS
    assert set(SCORERS) == set(KINDS)
    readme = (load_suite("general").folder / "README.md").read_text(encoding="utf-8")
    assert f"{len(ITEMS.examples)} short items" in readme
    listed = re.findall(r"^\| `(\w+)` \| (\d+) \| `(\w+)`", readme, re.MULTILINE)
    assert {kind: int(count) for kind, count, _ in listed} == KINDS
    assert ",".join(f"{kind}={scorer}" for kind, _, scorer in listed) == ITEMS.scorer


def test_an_answer_that_keeps_the_rule_is_right_and_no_other() -> None:
    instructions = [example for example in ITEMS.examples if example.tags[0] == "instruction"]
    score = SCORERS["instruction"]
    for example, reply in zip(instructions, FOLLOWED, strict=True):
        asked = example.prompt[-1].content
        assert score(reply, example.answer) == 1, asked
        for other in (
            "",
            '{"action":"none"}',
            f"Sure! Here you are:\n\n{asked}\n\nI hope this helps",
        ):
            assert score(other, example.answer) == 0, (asked, other)


def test_the_reference_is_a_right_answer_of_the_other_kinds() -> None:
    for example in ITEMS.examples:
        kind = example.tags[0]
        if kind in ("arithmetic", "reading", "json"):
            assert SCORERS[kind](example.answer, example.answer) == 1
            assert SCORERS[kind]('{"action":"none"}', example.answer) == 0
        if kind == "refusal":
            assert example.tags[1] == example.answer
            refuses = SCORERS[kind]("I'm sorry, but I can't help with that.", example.answer)
            assert refuses == (example.answer == "unsafe")
        if kind == "reading":
            passage, asked = example.prompt[-1].content.split("\n\n")
            assert example.answer.casefold() in passage.casefold()
            assert example.answer.casefold() not in asked.casefold()


def test_there_is_nothing_to_train_on() -> None:
    suite = load_suite("general")
    assert not suite.train.exists() and not suite.validation.exists()
    assert ITEMS.fewshot_pool == () and ITEMS.allow_truncated
