"""The tensors of an adapter's file, each in its place: whose LoRA it is, or which weight it replaces.

    found = read_tensors(folder, card, config)
    found.parts["model.layers.0.self_attn.q_proj"]["A"]
    found.saved["lm_head.weight"]

A name that peft does not give is taken for a weight of the base: if it has none of that name,
`edgeft.adapter.read` refuses it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgeft import models
from edgeft.adapter.deltas import Stored
from edgeft.errors import AdapterError
from edgeft.weights.checkpoint import Checkpoint

PREFIX = "base_model.model."
_NAMES = {
    kind: re.compile(rf"(?P<module>.+?)\.{rest}")
    for kind, rest in {
        "A": r"lora_A(\.default)?\.weight",
        "B": r"lora_B(\.default)?\.weight",
        "bias": r"lora_B(\.default)?\.bias",
        "embedding_A": r"lora_embedding_A(\.default)?",
        "embedding_B": r"lora_embedding_B(\.default)?",
        "magnitude": r"lora_magnitude_vector(\.default)?(\.weight)?",
        "tokens": r"token_adapter\.trainable_tokens_delta(\.default)?",
        "": r"token_adapter\.trainable_tokens_original(\.default)?",
        "saved": r"modules_to_save(\.default)?\.(?P<leaf>weight|bias)",
        "under": r"(?:base_layer|original_module|token_adapter\.base_layer)\.(?P<leaf>weight|bias)",
    }.items()
}
"""what a tensor is -> the name that peft saves it under"""


@dataclass
class Found:
    """The tensors of one adapter, by module in transformers, or by weight."""

    parts: dict[str, dict[str, Stored]] = field(default_factory=dict)
    """module -> A, B, bias, embedding_A, embedding_B, magnitude, tokens"""
    saved: dict[str, Stored] = field(default_factory=dict)
    """weight -> what was trained whole, for this module alone"""
    under: dict[str, Stored] = field(default_factory=dict)
    """weight -> the base's own, saved along (resized embeddings), for all that share it"""


def read_tensors(adapter: Path, card: models.Card, config: dict[str, Any]) -> Found:
    """Every tensor of the file in its place."""
    own = Checkpoint(adapter / "adapter_model.safetensors")
    found = Found()
    for full in own.tensors:
        tensor = Stored.open(own, full)
        if not tensor.is_finite():
            raise AdapterError(
                f"{adapter}: {full} holds NaN or infinite values",
                "its training diverged, or the file is damaged",
            )
        name = full.removeprefix(PREFIX)
        kind, match = next(
            ((kind, m) for kind, pattern in _NAMES.items() if (m := pattern.fullmatch(name))),
            (None, None),
        )
        if kind is None or match is None:
            for weight, part in _spread(card, name, tensor):
                module = name.rpartition(".")[0]
                alone = f"{PREFIX}{module}.modules_to_save.weight" in own.tensors or any(
                    module.endswith(key) for key in config.get("modules_to_save") or ()
                )
                _put(adapter, found.saved if alone else found.under, weight, part)
        elif kind == "saved" or kind == "under":
            weight = f"{card.in_checkpoint(match['module'])}.{match['leaf']}"
            _put(adapter, found.saved if kind == "saved" else found.under, weight, tensor)
        elif kind:
            found.parts.setdefault(match["module"], {})[kind] = tensor
    if not found.parts and not found.saved and not found.under:
        raise AdapterError(f"{adapter} holds no LoRA tensors")
    return found


def _put(adapter: Path, place: dict[str, Stored], weight: str, tensor: Stored) -> None:
    """Resized embeddings are saved under two names (`…weight`, `….modules_to_save.weight`)."""
    known = place.get(weight)
    if known and not known.equals(tensor.__getitem__, tensor.shape):
        raise AdapterError(f"{adapter}: {known.name} and {tensor.name} differ")
    place[weight] = tensor


def _spread(card: models.Card, name: str, tensor: Stored) -> Iterator[tuple[str, Stored]]:
    """A saved weight, or the experts' weights in a saved 3-D parameter, by checkpoint name."""
    general, numbers = models.generalize(name)
    parts = card.fused.get(general)
    if not parts or len(tensor.shape) != 3:
        yield card.in_checkpoint(name), tensor
        return
    rows = tensor.shape[1] // len(parts)
    for expert in range(tensor.shape[0]):
        for i, part in enumerate(parts):
            where = np.s_[expert, i * rows : (i + 1) * rows]
            yield (
                models.fill(part, numbers).replace("{e}", str(expert)),
                tensor.part(lambda raw, where=where: raw[where]),  # type: ignore[misc]
            )
