"""Which tensors a GGUF file has, and where in the base's checkpoint each of their rows comes from.

    for target in targets(merged):
        for part in target.parts:                       # one, or the experts that are stacked
            values = part.take(merged.rows, slice(0, 256))

Rows are those of (…, columns) seen as (rows, columns); every part of a target has equally many.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft.errors import FormatError
from edgeft.merge.landing import sampled
from edgeft.merge.view import Merged
from edgeft.models.transforms import Transform
from edgeft.weights.checkpoint import Rows, as_rows


@dataclass(frozen=True)
class Part:
    source: str
    """tensor of the checkpoint"""
    source_shape: tuple[int, ...]
    shape: tuple[int, ...]
    """of what it becomes"""
    transform: Transform
    config: dict[str, Any]

    @property
    def rows(self) -> int:
        return as_rows(self.shape)[0]

    @property
    def matrices(self) -> int:
        """How many it is: one, unless it has three dimensions by itself."""
        return math.prod(self.shape[:-2])

    def take(self, read: Callable[[str, Rows], npt.NDArray[Any]], rows: Rows) -> npt.NDArray[Any]:
        """Rows of what it becomes, from any reader of the checkpoint's tensors."""
        return self.transform.take(
            lambda wanted: read(self.source, wanted), rows, self.source_shape, self.config
        )

    def sample(self, parts: int) -> npt.NDArray[np.intp]:
        """The rows that the landing proof looks at, where `parts` share a tensor."""
        return sampled(self.rows, math.prod(self.shape) // self.rows, parts)


@dataclass(frozen=True)
class Target:
    name: str
    """GGUF"""
    shape: tuple[int, ...]
    parts: tuple[Part, ...]


def targets(merged: Merged) -> dict[str, Target]:
    """Every tensor of the file by its GGUF name; FormatError for one that has no place."""
    card, config = merged.card, merged.config
    found: dict[str, dict[int | None, Part]] = {}
    for source, source_shape in merged.shapes.items():
        names, expert = card.gguf_names(source)
        if not names:
            raise FormatError(
                f"the {card.family} card has no place for tensor {source}", "is it a variant?"
            )
        for name in names:
            transform = card.transform(name)
            shape = transform.shape(source_shape, config)
            part = Part(source, source_shape, shape, transform, config)
            found.setdefault(name, {})[expert] = part
    if merged.tied:
        found.pop("output.weight", None)
    return {name: _target(name, parts) for name, parts in found.items()}


def _target(name: str, parts: dict[int | None, Part]) -> Target:
    if None in parts:
        return Target(name, parts[None].shape, (parts[None],))
    experts = sorted(number for number in parts if number is not None)
    shapes = {part.shape for part in parts.values()}
    if experts != list(range(len(experts))) or len(shapes) > 1:
        lacks = next((i for i, n in enumerate(experts) if i != n), len(experts))
        raise FormatError(f"{name} lacks expert {lacks}", "the checkpoint is incomplete")
    ordered = tuple(parts[number] for number in experts)
    return Target(name, (len(ordered), *shapes.pop()), ordered)
