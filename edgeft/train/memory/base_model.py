"""A model's folder, or its config.json alone -> what memory needs to know of it: names, shapes, bytes.

    base = read_base(Path("model"))
    base.weights, base.linears(0)

No weights are read.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft import models
from edgeft.errors import InputError
from edgeft.files import read_json
from edgeft.weights.text_base import open_base


@dataclass(frozen=True)
class Linear:
    """A linear layer of a block."""

    name: str
    """the module's name in the checkpoint"""
    part: str
    """GGUF name, such as attn_q"""
    rows: int
    columns: int


@dataclass(frozen=True)
class BaseModel:
    """What memory needs to know of a base model."""

    card: models.Card
    config: dict[str, Any]
    sizes: models.Sizes
    shapes: dict[str, models.Shape]
    stored_bytes: int
    """of the files with the weights; of 16 bits for each weight where there are none"""
    stored_in: dict[str, int] = dataclasses.field(default_factory=dict)
    """safetensors type -> bytes of the tensors that are stored in it"""

    @property
    def weights(self) -> int:
        return sum(map(math.prod, self.shapes.values()))

    @functools.cached_property
    def packed(self) -> int:
        """Weights that QLoRA holds in 4 bits."""
        return sum(
            math.prod(shape)
            for name, shape in self.shapes.items()
            if self.card.in_4bit(name, shape)
        )

    @functools.cached_property
    def parts(self) -> dict[str, str]:
        """Tensor -> its GGUF name without layer and kind, "" where the card has none."""
        named = {name: self.card.gguf_names(name)[0] for name in self.shapes}
        return {
            name: gguf[0].rpartition(".")[0].rpartition(".")[2] if gguf else ""
            for name, gguf in named.items()
        }

    @functools.cached_property
    def layers(self) -> dict[int, list[tuple[str, models.Shape]]]:
        """Block -> (name, shape) of its tensors."""
        found: dict[int, list[tuple[str, models.Shape]]] = {}
        for name, shape in self.shapes.items():
            for layer in models.generalize(name)[1][:1]:
                found.setdefault(layer, []).append((name, shape))
        return found

    @functools.cached_property
    def has_biases(self) -> bool:
        return any(name.endswith(".bias") for name in self.shapes)

    def part(self, name: str) -> str:
        """As `parts`."""
        return self.parts[name]

    @functools.cached_property
    def linear_layers(self) -> dict[int, list[Linear]]:
        """Block -> its linear layers, without the router and the experts."""
        return {
            layer: [
                Linear(name.removesuffix(".weight"), self.part(name), *shape)
                for name, shape in tensors
                if len(shape) == 2 and self.card.in_4bit(name, shape)
            ]
            for layer, tensors in self.layers.items()
        }

    def linears(self, layer: int) -> list[Linear]:
        """Linear layers of a block, as `linear_layers`."""
        return self.linear_layers.get(layer, [])

    def layer(self, layer: int) -> list[tuple[str, models.Shape]]:
        """(name, shape) of the tensors of a block."""
        return self.layers.get(layer, [])


def read_base(path: Path) -> BaseModel:
    """The base of a folder, or of a config.json alone. Reads no weights.

    InputError where there is no config.json, FormatError for a family without a card.
    """
    folder = path if path.is_dir() else path.parent
    patterns = ("*.safetensors", "pytorch_model*.bin") if path.is_dir() else ()
    if any(file for pattern in patterns for file in folder.glob(pattern)):
        base = open_base(folder)
        weights = base.weights.tensors
        shapes = {n: info.shape for n, info in weights.items() if not base.card.ignores(n)}
        files = {info.file for info in weights.values()}
        size = sum(file.stat().st_size for file in files)
        sizes, stored_in = models.sizes_of(base.card, base.config), Counter[str]()
        for info in weights.values():
            stored_in[info.dtype] += math.prod(info.shape) * (4 if info.dtype == "F32" else 2)
        return BaseModel(base.card, base.config, sizes, shapes, size, stored_in)
    text = models.text_model(read_json(folder / "config.json" if path.is_dir() else path))
    sizes, shapes = models.sizes_of(text.card, text.config), models.tensor_shapes(*text[:2])
    if not sizes.vocabulary:
        raise InputError(f"{path} has no vocab_size", "take the model's own config.json")
    stored = 2 * sum(map(math.prod, shapes.values()))
    return BaseModel(text.card, text.config, sizes, shapes, stored)
