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

from edgeft.data.encoded_rows import IGNORED, Encoded, LazyRows, lengths


@dataclass(frozen=True)
class Packed(Encoded):
    """Several examples in one row."""

    positions: list[int]
    """of each token in its example"""


class PackedRows(LazyRows[Packed]):
    """Rows of several examples each, put together when they are read.

    A label of the first token of an example is IGNORED: what would predict it belongs to another one.
    """

    def __init__(self, examples: Sequence[Encoded], rows: list[list[int]]) -> None:
        """`rows`: numbers of the examples of each row."""
        self.examples, self.rows = examples, rows

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, number: int) -> Packed:
        row = [self.examples[i] for i in self.rows[number]]
        return Packed(
            ids=[token for example in row for token in example.ids],
            labels=[label for example in row for label in (IGNORED, *example.labels[1:])],
            positions=[position for example in row for position in range(len(example.ids))],
        )


def pack(examples: Sequence[Encoded], size: int) -> PackedRows:
    """Rows of at most `size` tokens (a longer example has a row of its own), each example whole."""
    rooms: list[tuple[int, int]] = []  # (free tokens, row), ascending
    rows: list[list[int]] = []
    sizes = lengths(examples)
    for index in sorted(range(len(examples)), key=lambda i: -sizes[i]):
        place = bisect.bisect_left(rooms, (sizes[index], -1))
        if place < len(rooms):  # the row with the least room that is enough
            free, row = rooms.pop(place)
        else:
            free, row = max(size, sizes[index]), len(rows)
            rows.append([])
        rows[row].append(index)
        bisect.insort(rooms, (free - sizes[index], row))
    return PackedRows(examples, rows)
