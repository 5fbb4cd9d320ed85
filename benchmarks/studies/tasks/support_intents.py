"""support_intents.toml and a random generator -> a customer's message, and one of 40 intents."""

from __future__ import annotations

import random
import tomllib
from pathlib import Path
from typing import Any

WORDS: dict[str, Any] = tomllib.loads(
    Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")
)
LABELS: tuple[str, ...] = tuple(WORDS["labels"])
INSTRUCTIONS = (
    "Which intent has the customer's message? Answer with one of these labels and nothing else:\n"
    + ", ".join(LABELS)
    + "\n"
)
TYPO_SHARE = 0.3
"""of the messages; a message with typos has one or two"""
PLAIN_SHARE = 0.25
"""of the messages, without capitals and without a mark at the end"""


def draw(rng: random.Random, group: str) -> tuple[str, str, tuple[str, ...]]:
    """(message, label, tags); the group `new` has phrases, and now and then words around, of its own."""
    new = group == "new"
    label = rng.choice(LABELS)
    phrase = rng.choice(WORDS["labels"][label]["new" if new else "seen"])
    greeting, context, ending = (
        rng.choice(WORDS[f"new_{part}" if new and rng.random() < 0.4 else part])
        for part in ("greetings", "contexts", "endings")
    )
    text = (greeting + context + phrase + ending).format_map(_slots(rng, new))
    if rng.random() < PLAIN_SHARE:
        text = text.lower().rstrip(".!?")
    if rng.random() < TYPO_SHARE:
        text = with_typos(rng, text, rng.choice((1, 2)))
    return text, label, (label,)


def _slots(rng: random.Random, new: bool) -> dict[str, str]:
    return {
        "item": rng.choice(WORDS["items"] + (WORDS["new_items"] if new else [])),
        "day": rng.choice(WORDS["days"]),
        "days": str(rng.randint(2, 9)),
        "name": rng.choice(WORDS["names"]),
        "place": rng.choice(WORDS["places"]),
        "n": str(rng.randint(10000, 99999)),
        "amount": f"{rng.randint(5, 79)}.{rng.choice(('00', '50', '90', '95'))}",
    }


def with_typos(rng: random.Random, text: str, count: int) -> str:
    """Two neighbours swapped, a letter lost or a letter doubled in `count` words of four letters or more."""
    words = text.split(" ")
    long = [i for i, word in enumerate(words) if len(word) > 3 and word.isalpha()]
    for i in rng.sample(long, min(count, len(long))):
        word, at = words[i], rng.randrange(1, len(words[i]) - 1)
        swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        lost, doubled = word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:]
        words[i] = rng.choice((swapped, lost, doubled))
    return " ".join(words)
