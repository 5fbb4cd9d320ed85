"""Tensor names with numbers as placeholders: "blk.3.ffn_up.weight" <-> "blk.{i}.ffn_up.weight"."""

from __future__ import annotations


def generalize(name: str) -> tuple[str, tuple[int, ...]]:
    """ "model.layers.3.mlp.experts.7.w1" -> ("model.layers.{i}.mlp.experts.{e}.w1", (3, 7))."""
    parts = name.split(".")
    places = [i for i, part in enumerate(parts) if part.isdigit()][:2]
    numbers = tuple(int(parts[i]) for i in places)
    for place, letter in zip(places, ("{i}", "{e}"), strict=False):
        parts[place] = letter
    return ".".join(parts), numbers


def fill(name: str, numbers: tuple[int, ...]) -> str:
    for letter, number in zip(("{i}", "{e}"), numbers, strict=False):
        name = name.replace(letter, str(number))
    return name
