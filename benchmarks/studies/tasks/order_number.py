"""order_number.toml and a random generator -> a line with the number of an order, and the number."""

from __future__ import annotations

import random
import tomllib
from pathlib import Path

PHRASES: dict[str, list[str]] = tomllib.loads(
    Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")
)
INSTRUCTIONS = (
    "Answer with the order number that stands in the message, digits only, nothing else.\n"
)


def draw(rng: random.Random, group: str) -> tuple[str, str, tuple[str, ...]]:
    """(message, digits, no tags); the group `new` has phrases of its own."""
    number = str(rng.randint(1000, 99999))
    return rng.choice(PHRASES[group]).format(n=number), number, ()
