"""Compact rows of token ids: what goes in comes out, in a few bytes a token."""

from __future__ import annotations

import random

import pytest

from edgeft.data.encoded_rows import IGNORED, Encoded, EncodedRows, lengths

pytestmark = pytest.mark.unit


def some_rows(count: int, tokens: int = 9) -> list[Encoded]:
    draw = random.Random(0)
    rows = []
    for _ in range(count):
        ids = [draw.randrange(200_000) for _ in range(draw.randrange(tokens))]
        rows.append(Encoded(ids, [id if draw.random() < 0.5 else IGNORED for id in ids]))
    return rows


def test_every_row_comes_back() -> None:
    rows = some_rows(50)
    kept = EncodedRows(rows)
    assert list(kept) == rows and kept[-1] == rows[-1] and kept[3:9:2] == rows[3:9:2]
    assert lengths(kept) == lengths(rows) == [len(row.ids) for row in rows]
    with pytest.raises(IndexError):
        kept[50]
    assert not EncodedRows() and len(EncodedRows()) == 0


def test_a_token_takes_five_bytes() -> None:
    rows = some_rows(2000, 100)
    kept = EncodedRows(rows)
    tokens = sum(lengths(kept))
    parts = (kept._ids, kept._learned, kept._ends)
    assert sum(part.__sizeof__() for part in parts) < 6 * tokens + 16 * len(rows)
