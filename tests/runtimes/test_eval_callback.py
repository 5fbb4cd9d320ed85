"""Batches of several sequences, and a callback that sees each tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.runtimes.eval_callback import MAX_SEQUENCES, packed_batches
from edgeft.runtimes.gguf import GGUFRuntime
from edgeft.runtimes.llama_context import BATCH_TOKENS


def random_ids(*lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 265, length).tolist() for length in lengths]


def test_batches_are_full_and_keep_sequences_apart() -> None:
    lengths = (100, 3 * BATCH_TOKENS, 1, 1, BATCH_TOKENS - 2, 5, *[1] * 3 * MAX_SEQUENCES)
    conversations = random_ids(*lengths)
    for count in (1, 2, MAX_SEQUENCES):
        batches = list(packed_batches(conversations, count))
        tokens = [token for batch in batches for token, _, _ in batch]
        assert tokens == [token for ids in conversations for token in ids]
        assert max(map(len, batches)) == BATCH_TOKENS
        for batch in batches:
            begun = [sequence for _, position, sequence in batch if position == 0]
            rest = {batch[0][2]} if batch[0][1] else set()
            assert len({*begun, *rest}) == len(begun) + len(rest) <= count
    assert len(list(packed_batches(random_ids(300, 400, 100, 224), MAX_SEQUENCES))) == 2


@pytest.mark.parametrize("when", [True, False])
@pytest.mark.parametrize("error", [ValueError("in the callback"), KeyboardInterrupt()])
def test_an_error_of_the_callback_is_raised(gguf: Path, error: Any, when: bool) -> None:
    calls = 0

    def observer(address: int, ask: bool) -> bool:
        nonlocal calls
        calls += 1
        if ask == when:
            raise error
        return True

    with GGUFRuntime(gguf, 1) as runtime:
        with pytest.raises(type(error)):
            list(runtime.watch(random_ids(20, 500), observer))
        assert calls <= 2
        assert len(runtime.logits(random_ids(5)[0])) == 5
