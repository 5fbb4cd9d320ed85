"""Tensor names <-> patterns: "blk.3.ffn_up.weight" <-> ("blk.{i}.ffn_up.weight", (3,)).

{i} stands for the layer, {e} for the expert.
"""

from __future__ import annotations

PLACEHOLDERS = ("{i}", "{e}")


def generalize(name: str) -> tuple[str, tuple[int, ...]]:
    """A name -> its pattern and numbers.

    "model.layers.3.mlp.experts.7.w1" -> ("model.layers.{i}.mlp.experts.{e}.w1", (3, 7)).
    """
    parts = name.split(".")
    places = [i for i, part in enumerate(parts) if part.isdigit()][: len(PLACEHOLDERS)]
    numbers = tuple(int(parts[i]) for i in places)
    for place, placeholder in zip(places, PLACEHOLDERS, strict=False):
        parts[place] = placeholder
    return ".".join(parts), numbers


def fill(pattern: str, numbers: tuple[int, ...]) -> str:
    """The name of a pattern with these numbers: the inverse of `generalize`."""
    for placeholder, number in zip(PLACEHOLDERS, numbers, strict=False):
        pattern = pattern.replace(placeholder, str(number))
    return pattern
