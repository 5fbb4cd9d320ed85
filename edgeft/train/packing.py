"""Encoded examples -> rows of several examples each, without padding between them.

    rows = pack(encoded, 512)       # best-fit decreasing, at most 512 tokens a row
    rows[0].positions               # 0 1 2 … 0 1 2 …: each example begins at 0 again

An example sees no token of another one: transformers makes a block-diagonal attention mask of the
positions (`masking_utils.find_packed_sequence_indices`). So the loss of a row is that of its
examples. Best-fit decreasing is the packing of arXiv 2404.10830 and trl's "bfd".
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

from edgeft.data.encoding import IGNORED, Encoded


@dataclass(frozen=True)
class Packed(Encoded):
    """Several examples in one row."""

    positions: list[int]
    """of each token in its example"""


def pack(examples: Sequence[Encoded], size: int) -> list[Packed]:
    """Rows of at most `size` tokens (a longer example has a row of its own), each example whole.

    A label of the first token of an example is IGNORED: what would predict it belongs to another one.
    """
    rooms: list[tuple[int, int]] = []  # (free tokens, row), ascending
    rows: list[list[Encoded]] = []
    order = sorted(range(len(examples)), key=lambda i: -len(examples[i].ids))
    for index in order:
        length = len(examples[index].ids)
        place = bisect.bisect_left(rooms, (length, -1))
        if place < len(rooms):  # the row with the least room that is enough
            free, row = rooms.pop(place)
        else:
            free, row = max(size, length), len(rows)
            rows.append([])
        rows[row].append(examples[index])
        bisect.insort(rooms, (free - length, row))
    return [
        Packed(
            ids=[token for example in row for token in example.ids],
            labels=[label for example in row for label in (IGNORED, *example.labels[1:])],
            positions=[position for example in row for position in range(len(example.ids))],
        )
        for row in rows
    ]
