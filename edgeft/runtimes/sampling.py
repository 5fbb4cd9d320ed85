"""Logits -> the next token, and prompts -> replies by a stream: what runtimes without a sampler and a
scheduler of their own share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from edgeft.records import Limits, Reply, Token


def choose(logits: npt.NDArray[np.float32], limits: Limits, rng: np.random.Generator) -> int:
    """The next token by its logits (vocabulary,): the likeliest at temperature 0, else one drawn from
    those that top-k, top-p (arXiv 1904.09751) and min-p (arXiv 2407.01082) keep."""
    if limits.temperature <= 0:
        return int(logits.argmax())
    order = np.argsort(-logits)[: limits.top_k or None]
    scaled = (logits[order] - logits[order[0]]) / limits.temperature
    p = np.exp(scaled) / np.exp(scaled).sum()
    keep = int(np.searchsorted(np.cumsum(p), limits.top_p)) + 1
    keep = min(keep, int(np.count_nonzero(p >= limits.min_p * p[0])))
    return int(rng.choice(order[:keep], p=p[:keep] / p[:keep].sum()))


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """The number of tokens that both begin with."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def in_turn(
    stream: Callable[[Sequence[int], Limits], Iterator[Token]],
    prompts: Sequence[Sequence[int]],
    limits: Limits,
    max_new_tokens: Callable[[Sequence[int]], int],
    progress: Callable[[int], None] | None,
) -> list[Reply]:
    """Answer one prompt after the other. `max_new_tokens` of a prompt: what its answer may have; an
    answer with fewer tokens has ended by itself."""
    replies, start = [], time.perf_counter()
    for count, prompt in enumerate(prompts, 1):
        waited = time.perf_counter() - start
        tokens = list(stream(prompt, limits))
        text, ids = "".join(token.text for token in tokens), tuple(token.id for token in tokens)
        seconds = tuple(waited + token.seconds for token in tokens)
        replies.append(Reply(text, ids, len(ids) < max_new_tokens(prompt), seconds))
        if progress:
            progress(count)
    return replies
