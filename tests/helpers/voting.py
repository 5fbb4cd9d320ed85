"""Answers of two arms to vote on, without a model."""

from __future__ import annotations

from edgeft.human.votes import Pairs, Vote
from edgeft.records import Example, Message, Score

NAMES = ("quantized-arm.gguf", "full-arm.gguf")


def make_pairs(count: int = 6, identical: tuple[int, ...] = ()) -> Pairs:
    """Arm a says "good 3" to item 3 and arm b "poor 3", or both "same 3"."""
    examples = tuple(
        Example(
            messages=(Message("system", "Be brief."), Message("user", f"Question {i}?"),
                      Message("assistant", f"wanted {i}")),
            tags=(f"kind{i % 2}",),
        )
        for i in range(count)
    )  # fmt: skip

    def score(word: str) -> Score:
        replies = tuple(f"{'same' if i in identical else word} {i}" for i in range(count))
        return Score(word, "", "exact", replies, (0.0,) * count, (True,) * count, 0.0)

    return Pairs(NAMES, ("1" * 64, "2" * 64), examples, (score("good"), score("poor")))


def make_votes(letters: str, rater: str = "", first: int = 0) -> list[Vote]:
    """Votes on items from `first` on, a letter each: a, b, t(ie), x(bad), s(kip), u(ndo)."""
    names = {"a": "a", "b": "b", "t": "tie", "x": "bad", "s": "skip", "u": "undo"}
    return [Vote(first + i, names[letter], rater, "a") for i, letter in enumerate(letters)]
