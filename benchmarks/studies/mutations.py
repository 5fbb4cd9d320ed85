"""Bytes or JSON of a valid file -> damaged copies of it, the same ones for the same seed.

for data in mutants(path.read_bytes(), count=150, seed=0):
    path.write_bytes(data)
for value in json_mutants({"hidden_size": 64}, count=150, seed=0):
    path.write_text(json.dumps(value))
"""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    16,
    127,
    255,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**62,
    2**63,
    2**64 - 1,
)
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 10**9, 2**63, 10**400, 0.0, -1.5, 1e-300, 1e308, float("nan"),
    float("inf"), "", "x", "4", "\ud800", "\0", "a" * 10_000, [], [0], ["x"], [[]], {}, {"x": 1}, [1, 2, 3],
)  # fmt: skip
"""what a key of JSON may hold instead"""


def mutants(data: bytes, count: int, seed: int, span: int | None = None) -> Iterator[bytes]:
    """Copies with one to three changes within the first `span` bytes, where headers are."""
    draw = random.Random(seed)
    changes: tuple[Callable[[random.Random, bytearray, int], None], ...] = (
        _flip, _number, _cut, _insert, _repeat, _zeros,
    )  # fmt: skip
    for _ in range(count):
        changed = bytearray(data)
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            draw.choice(changes)(draw, changed, min(span or len(changed), len(changed)))
        yield bytes(changed)


def json_mutants(value: Any, count: int, seed: int) -> Iterator[Any]:
    """Copies of a JSON value in which one to three values were replaced, removed or nested."""
    draw = random.Random(seed)
    for _ in range(count):
        changed = copy.deepcopy(value)
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            places = list(_places(changed))
            if not places:
                break
            parent, key = draw.choice(places)
            how = draw.randrange(6)
            if how == 0:
                del parent[key]
            elif how == 1:
                parent[key] = [parent[key]]
            elif how == 2:
                parent[key] = {"x": parent[key]}
            else:
                parent[key] = copy.deepcopy(draw.choice(VALUES))
        yield changed


def json_texts(value: Any, count: int, seed: int) -> Iterator[bytes]:
    """Files of damaged JSON: every second time its values, every second time its bytes."""
    whole = json.dumps(value).encode()
    values, texts = json_mutants(value, count, seed), mutants(whole, count, seed)
    for number, (changed, text) in enumerate(zip(values, texts, strict=True)):
        yield json.dumps(changed).encode() if number % 2 else text


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything in a JSON value."""
    if isinstance(value, dict):
        keys: list[Any] = list(value)
    else:
        keys = list(range(len(value))) if isinstance(value, list) else []
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _flip(draw: random.Random, data: bytearray, span: int) -> None:
    if span:
        data[draw.randrange(span)] ^= 1 << draw.randrange(8)


def _number(draw: random.Random, data: bytearray, span: int) -> None:
    """A number of 1, 4 or 8 bytes."""
    size = draw.choice((1, 4, 8))
    at = draw.randrange(max(1, span - size))
    data[at : at + size] = struct.pack("<Q", draw.choice(NUMBERS))[:size]


def _cut(draw: random.Random, data: bytearray, span: int) -> None:
    if draw.random() < 0.5:
        del data[draw.randrange(max(1, span)) :]
    else:
        at = draw.randrange(max(1, span))
        del data[at : at + draw.randrange(1, 64)]


def _insert(draw: random.Random, data: bytearray, span: int) -> None:
    at = draw.randrange(max(1, span))
    data[at:at] = bytes(draw.randrange(256) for _ in range(draw.randrange(1, 32)))


def _repeat(draw: random.Random, data: bytearray, span: int) -> None:
    at = draw.randrange(max(1, span))
    part = data[at : at + draw.randrange(1, 64)]
    data[at:at] = part * draw.randrange(1, 4)


def _zeros(draw: random.Random, data: bytearray, span: int) -> None:
    at = draw.randrange(max(1, span))
    size = min(draw.randrange(1, 64), len(data) - at)
    data[at : at + size] = bytes(size)
