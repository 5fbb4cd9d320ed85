"""The choice of a token from its logits, and replies one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from edgeft.records import Limits, Token
from edgeft.runtimes.sampling import choose, common_prefix, in_turn

pytestmark = pytest.mark.unit


def test_top_k_top_p_and_min_p_keep_only_likely_tokens() -> None:
    logits = np.log(np.array([0.05, 0.5, 0.3, 0.15], np.float32))

    def chosen(**options: Any) -> set[int]:
        rng = np.random.default_rng(0)
        return {choose(logits, Limits(temperature=1.0, **options), rng) for _ in range(300)}

    assert chosen() == {0, 1, 2, 3}
    assert chosen(top_k=2) == {1, 2}
    assert chosen(min_p=0.25) == {1, 2, 3}
    assert chosen(min_p=1.0) == chosen(top_k=1) == {1}
    assert chosen(top_p=0.7, top_k=3) == {1, 2}


@pytest.mark.parametrize(
    ("a", "b", "length"),
    [([], [1], 0), ([1, 2, 3], [1, 2, 4], 2), ([1, 2], [1, 2, 3], 2), ([2], [1], 0)],
)
def test_common_prefix(a: list[int], b: list[int], length: int) -> None:
    assert common_prefix(a, b) == common_prefix(b, a) == length


def test_replies_in_turn_have_texts_times_and_ends() -> None:
    def stream(ids: Sequence[int], limits: Limits) -> Iterator[Token]:
        yield from (Token(i, f"{i} ", 0.0) for i in range(min(len(ids), limits.max_tokens)))

    counts: list[int] = []
    replies = in_turn(stream, [[5], [5, 5, 5]], Limits(2), lambda _: 2, counts.append)
    assert [reply.text for reply in replies] == ["0 ", "0 1 "]
    assert [reply.ids for reply in replies] == [(0,), (0, 1)]
    assert [reply.stopped for reply in replies] == [True, False]
    assert counts == [1, 2] and replies[0].seconds[0] <= replies[1].seconds[0]
