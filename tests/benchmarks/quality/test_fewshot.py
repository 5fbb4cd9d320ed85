"""Prompts with worked examples: which examples are shown, in which order, under which system turn."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from edgeft.benchmarks.quality.fewshot import (
    BM25,
    Embeddings,
    FewShot,
    FewShotPrompts,
    fixed_examples,
)
from edgeft.records import Example, Message

pytestmark = pytest.mark.unit


def row(question: str, answer: str, *tags: str, system: str = "") -> Example:
    lead = [Message("system", system)] if system else []
    return Example((*lead, Message("user", question), Message("assistant", answer)), tags)


POOL = [
    row("turn on the lamp", "lamp", "on"),
    row("open the kitchen window", "window", "open", system="be brief"),
    row("close the kitchen blinds now", "blinds", "close"),
    row("what is the weather", "none", "none"),
]


def test_bm25_is_the_formula() -> None:
    texts = ["a b b c", "a d", "e f g"]
    index = BM25(texts)

    def term(times: int, length: int, containing: int) -> float:
        idf = math.log(1 + (3 - containing + 0.5) / (containing + 0.5))
        return idf * times * 2.2 / (times + 1.2 * (0.25 + 0.75 * length / 3))

    scores = index.scores("b A unknown")
    assert scores == pytest.approx({0: term(2, 4, 1) + term(1, 4, 2), 1: term(1, 2, 2)})
    assert index.best("b A", 3) == [0, 1, 2]
    assert index.best("nothing shared", 2) == [0, 1]
    assert BM25(["", ""]).best("a", 5) == [0, 1]


def test_scripts_without_spaces_are_compared_by_character() -> None:
    assert BM25(["\u6253\u5f00\u7a97\u6237", "\u5173\u706f"]).best("\u8bf7\u5173\u706f", 1) == [1]


def test_similar_examples_come_last_and_each_item_has_its_own() -> None:
    prompts = FewShotPrompts(FewShot(2, "similar"), POOL, "Name the device.")
    asked = prompts.prompt(row("the kitchen window please", "window"))
    assert [message.content for message in asked] == [
        "Name the device.", "close the kitchen blinds now", "blinds", "open the kitchen window",
        "window", "the kitchen window please",
    ]  # fmt: skip
    other = prompts.prompt(row("lamp on", "lamp"))
    assert other[-2].content == "lamp"


def test_embeddings_are_compared_without_their_mean() -> None:
    """Their mean is (4, 0, 0); with it in them "a" would be nearest to "like b"."""
    states = {"a": [10, 2, 0], "b": [2, 0, 2], "c": [0, -2, -2], "like b": [4, 0.1, 1]}

    def embed(texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return np.array([states[text] for text in texts], np.float32)

    assert Embeddings(["a", "b", "c"], embed).best("like b", 3) == [1, 0, 2]
    pool = [row(text, text.upper()) for text in "abc"]
    asked = FewShotPrompts(FewShot(2, "embeddings"), pool, "", embed).prompt(row("like b", "x"))
    assert [message.content for message in asked] == ["a", "A", "b", "B", "like b"]
    assert str(FewShot(2, "embeddings")) == "2-shot, embeddings"


def test_fixed_examples_are_the_same_for_every_item_and_take_turns_by_tag() -> None:
    shown = fixed_examples(POOL, 4)
    assert {example.tags[0] for example in shown} == {"on", "open", "close", "none"}
    prompts = FewShotPrompts(FewShot(2), POOL, "")
    assert prompts.prompt(row("x", "y"))[:-1] == prompts.prompt(row("other", "y"))[:-1]


def test_there_is_one_system_turn() -> None:
    item = row("x", "y", system="the item's")
    asked = FewShotPrompts(FewShot(4), POOL, "Instructions.").prompt(item)
    assert asked[0] == Message("system", "Instructions.\n\nthe item's")
    assert [message.role for message in asked[1:]] == ["user", "assistant"] * 4 + ["user"]
    assert FewShotPrompts(FewShot(0), POOL, "").prompt(row("x", "y")) == [Message("user", "x")]
