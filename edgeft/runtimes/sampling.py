"""What runtimes that write token by token have in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from edgeft.records import Limits, Reply, Token


def choose(logits: npt.NDArray[np.float32], limits: Limits, draw: np.random.Generator) -> int:
    """One token by the logits of the vocabulary: greedy, or sampled among the top k, the nucleus
    (arXiv 1904.09751) and what min-p leaves (arXiv 2407.01082)."""
    if limits.temperature <= 0:
        return int(logits.argmax())
    order = np.argsort(-logits)[: limits.top_k or None]
    scaled = (logits[order] - logits[order[0]]) / limits.temperature
    share = np.exp(scaled) / np.exp(scaled).sum()
    keep = int(np.searchsorted(np.cumsum(share), limits.top_p)) + 1
    keep = min(keep, int(np.count_nonzero(share >= limits.min_p * share[0])))
    return int(draw.choice(order[:keep], p=share[:keep] / share[:keep].sum()))


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def in_turn(
    stream: Callable[[Sequence[int], Limits], Iterator[Token]],
    prompts: Sequence[Sequence[int]],
    limits: Limits,
    room: Callable[[Sequence[int]], int],
    progress: Callable[[int], None] | None,
) -> list[Reply]:
    """Answer one prompt after the other; `room`: tokens that its answer may have, so that one of
    fewer has stopped."""
    replies, start = [], time.perf_counter()
    for number, prompt in enumerate(prompts, 1):
        waited = time.perf_counter() - start
        tokens = list(stream(prompt, limits))
        text, ids = "".join(token.text for token in tokens), tuple(token.id for token in tokens)
        seconds = tuple(waited + token.seconds for token in tokens)
        replies.append(Reply(text, ids, len(ids) < room(prompt), seconds))
        if progress:
            progress(number)
    return replies
