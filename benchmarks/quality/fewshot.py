"""A pool of worked examples and an item -> the messages that a model without a fine-tune is asked.

    FewShot(4)                                  # the same four examples before every item
    FewShot(4, "similar")                       # the four that are most like the item, by BM25
    FewShot(4, "embeddings")                    # the same by the model's own states
    FewShotPrompts(FewShot(4), pool, "Answer with one word.").prompt(item)

The prompt is one system turn (the instructions and the item's own), then the examples' turns without
their system turns, then the item's. Similar examples end with the most similar one.

BM25 is that of S. Robertson and H. Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond"
(Foundations and Trends in Information Retrieval 3:333-389, 2009, equation 3.15), with Lucene's idf, which
is never negative. To pick examples by similarity: J. Liu et al., "What Makes Good In-Context Examples
for GPT-3?" (DeeLIO 2022). Embeddings are compared without their mean, which is in all of them: J. Mu and
P. Viswanath, "All-but-the-Top" (ICLR 2018).
"""

from __future__ import annotations

import collections
import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgeft.records import Example, Message

FEWSHOT_SEED = 0
"""seed of the choice of fixed examples"""
BM25_K1, BM25_B = 1.2, 0.75
"""how soon a word's repetitions stop to count, and how much long texts are held back"""
_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
"""a word, or a character of a script that puts no spaces between words"""

Pick = Literal["fixed", "similar", "embeddings"]
Embed = Callable[[Sequence[str]], npt.NDArray[np.float32]]
"""texts -> (texts, width), each of length 1"""


@dataclass(frozen=True)
class FewShot:
    """How a model that was not fine-tuned is asked."""

    shots: int
    """worked examples before the item; 0 = instructions only"""
    pick: Pick = "fixed"

    def __str__(self) -> str:
        return f"{self.shots}-shot" + (
            f", {self.pick}" if self.shots and self.pick != "fixed" else ""
        )


class BM25:
    """An index of texts; `best` finds those that share the rarest words with a query."""

    def __init__(self, texts: Sequence[str]) -> None:
        counts = [collections.Counter(_words(text)) for text in texts]
        lengths = [sum(count.values()) for count in counts]
        mean = sum(lengths) / max(len(lengths), 1) or 1.0
        self._norms = [BM25_K1 * (1 - BM25_B + BM25_B * length / mean) for length in lengths]
        self._postings: dict[str, list[tuple[int, int]]] = collections.defaultdict(list)
        for i, count in enumerate(counts):
            for word, times in count.items():
                self._postings[word].append((i, times))

    def scores(self, query: str) -> dict[int, float]:
        """text number -> score, of all texts that share a word with the query."""
        scores: dict[int, float] = collections.defaultdict(float)
        for word in _words(query):
            postings = self._postings.get(word, ())
            texts = len(postings)
            idf = math.log(1 + (len(self._norms) - texts + 0.5) / (texts + 0.5))
            for i, times in postings:
                scores[i] += idf * times * (BM25_K1 + 1) / (times + self._norms[i])
        return scores

    def best(self, query: str, count: int) -> list[int]:
        """Numbers of `count` texts, the best first; ties and texts without a score in their order."""
        scores = self.scores(query)
        ranked = sorted(scores, key=lambda i: (-scores[i], i))[:count]
        others = (i for i in range(len(self._norms)) if i not in scores)
        while len(ranked) < min(count, len(self._norms)):
            ranked.append(next(others))
        return ranked


class Embeddings:
    """The states of texts; `best` finds those whose direction from their mean is most like a query's."""

    def __init__(self, texts: Sequence[str], embed: Embed) -> None:
        self._embed = embed
        states = embed(texts)
        self._mean = states.mean(axis=0)
        self._directions = _directions(states - self._mean)

    def best(self, query: str, count: int) -> list[int]:
        """Numbers of `count` texts, the best first; ties in their order."""
        direction = _directions(self._embed([query]) - self._mean)[0]
        ranked: list[int] = np.argsort(-self._directions @ direction, kind="stable")[
            :count
        ].tolist()
        return ranked


def _directions(states: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    scaled: npt.NDArray[np.float32] = states / np.maximum(
        np.linalg.norm(states, axis=1, keepdims=True), np.float32(1e-12)
    )
    return scaled


class FewShotPrompts:
    """The prompts of items, with worked examples from `pool` (at least as many as shots)."""

    def __init__(
        self,
        few_shot: FewShot,
        pool: Sequence[Example],
        instructions: str,
        embed: Embed | None = None,
    ) -> None:
        """`embed`: needed for the pick "embeddings"."""
        self._few_shot, self._pool, self._instructions = few_shot, pool, instructions
        self._index: BM25 | Embeddings | None = None
        if few_shot.shots and few_shot.pick != "fixed":
            texts = [question(example) for example in pool]
            if few_shot.pick == "embeddings":
                assert embed is not None
                self._index = Embeddings(texts, embed)
            else:
                self._index = BM25(texts)
        self._fixed = [] if self._index else fixed_examples(pool, few_shot.shots)

    def prompt(self, example: Example) -> list[Message]:
        """All messages before the answer."""
        system = [message for message in example.prompt if message.role == "system"]
        parts = [self._instructions, *(message.content for message in system)]
        text = "\n\n".join(part for part in parts if part)
        shots = [m for shot in self._shots(example) for m in shot.messages if m.role != "system"]
        turns = [message for message in example.prompt if message.role != "system"]
        return [*([Message("system", text)] if text else []), *shots, *turns]

    def _shots(self, example: Example) -> Sequence[Example]:
        if self._index is None:
            return self._fixed
        best = self._index.best(question(example), self._few_shot.shots)
        return [self._pool[i] for i in reversed(best)]


def fixed_examples(pool: Sequence[Example], shots: int) -> list[Example]:
    """The same examples for every item; they take turns by their first tag."""
    by_tag: dict[str, list[Example]] = {}
    for example in pool:
        by_tag.setdefault(example.tags[0] if example.tags else "", []).append(example)
    rng = random.Random(FEWSHOT_SEED)
    tags = sorted(by_tag)
    rng.shuffle(tags)
    return [rng.choice(by_tag[tags[i % len(tags)]]) for i in range(shots)]


def question(example: Example) -> str:
    """What is asked: the text of the prompt without its system turn."""
    return "\n".join(message.content for message in example.prompt if message.role != "system")


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())
