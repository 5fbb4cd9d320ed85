"""Batch invariance: how many sequences may be decoded together so that each gets the logits, bit for
bit, that it gets alone. Takes a function that decodes, gives a `BatchInvariance`; needs no model.

ggml chooses its kernels by the number of rows, and two kernels add the same terms in another order:

- one row of float16 has another kernel than several (llamafile/sgemm.cpp: "only enable sgemm for
  prompt processing"). A single token is then decoded beside a padding token (`pad_single_token`).
- eight rows of K-quants have another kernel than fewer (tiled/tiled.cpp: `ggml_tiled_min_batch`).
  Fewer sequences are then decoded together (`max_batch`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

PROBED_SEQUENCES = 9
"""more than any number of rows at which a kernel is known to change"""
BATCH_SIZES = (7, 3, 2)
"""numbers of sequences to try where all together differ from one alone"""


@dataclass(frozen=True)
class BatchInvariance:
    max_batch: int
    """sequences that are decoded together at most"""
    pad_single_token: bool = False
    """decode no token alone: a padding token of a neighbouring sequence goes with it"""

    def padding(self, numbers: Sequence[int], may_pad: Callable[[int], bool]) -> list[int]:
        """The sequences that need a padding token so that `numbers` (ascending) are decoded together.

        llama.cpp decodes only sequences with neighbouring numbers together, so a gap of one is filled.
        A number that occurs twice stands for a part of a prompt, which needs no padding.
        """
        if len(set(numbers)) < len(numbers):
            return []
        padding = {a + 1 for a, b in itertools.pairwise(numbers) if b == a + 2 and may_pad(a + 1)}
        if len(padding) + len(numbers) > self.max_batch:
            padding.clear()
        if self.pad_single_token:
            present = padding.union(numbers)
            singles = [n for n in numbers if not present & {n - 1, n + 1}]
            neighbours = (next(filter(may_pad, (n + 1, n - 1)), None) for n in singles)
            padding |= {number for number in neighbours if number is not None}
        return sorted(padding)


def probe(
    decode: Callable[[BatchInvariance], npt.NDArray[Any]], count: int, can_pad: bool
) -> BatchInvariance:
    """The largest batches of `count` sequences that change no bit.

    `decode`: the logits of one step of each of min(count, PROBED_SEQUENCES) sequences, in their order,
    at most `max_batch` of them at a time. `can_pad`: padding tokens can be taken back.
    """

    def differs(max_batch: int, pad: bool) -> bool:
        return bool((decode(BatchInvariance(max_batch, pad)) != alone).any())

    probed = min(count, PROBED_SEQUENCES)
    alone = decode(BatchInvariance(1))
    pad = can_pad and probed > 1 and differs(2, pad=False)
    if pad:
        alone = decode(BatchInvariance(1, pad))
    sizes = [size for size in (probed, *BATCH_SIZES) if size <= probed]
    max_batch = next((size for size in sizes if not differs(size, pad)), 1)
    return BatchInvariance(count if max_batch == probed else max_batch, pad)
