"""The tensors of an adapter's file, sorted: whose LoRA each is, or which weight it replaces.

    tensors = read_tensors(adapter, folder, card, config)
    tensors.parts["model.layers.0.self_attn.q_proj"]["A"]
    tensors.saved["lm_head.weight"]

A tensor whose name is none of peft's is taken for a weight of the base. `edgeft.adapter.read` refuses
it if the base has no weight of that name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgeft import models
from edgeft.adapter.deltas import LazyTensor
from edgeft.adapter.names import PREFIX, role_of
from edgeft.errors import AdapterError
from edgeft.weights.checkpoint import Checkpoint


@dataclass
class AdapterTensors:
    """The tensors of one adapter."""

    parts: dict[str, dict[str, LazyTensor]] = field(default_factory=dict)
    """module in transformers -> role (`names.ROLES`) -> tensor"""
    saved: dict[str, LazyTensor] = field(default_factory=dict)
    """weight -> what was trained as a whole, for this module alone"""
    base: dict[str, LazyTensor] = field(default_factory=dict)
    """weight -> the base's own, saved along (resized embeddings), for all modules that share it"""


def read_tensors(
    adapter: Path, folder: Path, card: models.Card, config: dict[str, Any]
) -> AdapterTensors:
    """Of `folder`, which peft can load. `adapter`: its path for messages.

    AdapterError where a tensor is not finite, or where there is none.
    """
    file = Checkpoint(folder / "adapter_model.safetensors")
    tensors = AdapterTensors()
    for full in file.tensors:
        tensor = LazyTensor.open(file, full)
        if not tensor.is_finite():
            raise AdapterError(
                f"{adapter}: {full} holds NaN or infinite values",
                "its training diverged, or the file is damaged",
            )
        name = full.removeprefix(PREFIX)
        role, match = role_of(name)
        if match is None:
            alone = _trained_alone(name, file, config)
            for weight, part in _by_weight(card, name, tensor):
                _add(adapter, tensors.saved if alone else tensors.base, weight, part)
        elif role in ("saved", "base"):
            weight = f"{card.in_checkpoint(match['module'])}.{match['leaf']}"
            _add(adapter, tensors.saved if role == "saved" else tensors.base, weight, tensor)
        elif role:
            tensors.parts.setdefault(match["module"], {})[role] = tensor
    if not tensors.parts and not tensors.saved and not tensors.base:
        raise AdapterError(
            f"{adapter} holds no {config['peft_type']} tensors".replace("LORA", "LoRA")
        )
    return tensors


def _trained_alone(name: str, file: Checkpoint, config: dict[str, Any]) -> bool:
    """Whether a weight under the base's name is a module of `modules_to_save`."""
    module = name.rpartition(".")[0]
    return f"{PREFIX}{module}.modules_to_save.weight" in file.tensors or any(
        module.endswith(key) for key in config.get("modules_to_save") or ()
    )


def _add(adapter: Path, place: dict[str, LazyTensor], weight: str, tensor: LazyTensor) -> None:
    """Resized embeddings are saved under two names (`…weight`, `….modules_to_save.weight`)."""
    known = place.get(weight)
    if known and not known.equals(tensor.__getitem__, tensor.shape):
        raise AdapterError(f"{adapter}: {known.name} and {tensor.name} differ")
    place[weight] = tensor


def _by_weight(
    card: models.Card, name: str, tensor: LazyTensor
) -> Iterator[tuple[str, LazyTensor]]:
    """(name in the checkpoint, tensor) of a saved weight; of a 3-D parameter for each expert."""
    general, numbers = models.generalize(name)
    parts = card.fused.get(general)
    if not parts or len(tensor.shape) != 3:
        yield card.in_checkpoint(name), tensor
        return
    rows = tensor.shape[1] // len(parts)
    for expert in range(tensor.shape[0]):
        for i, part in enumerate(parts):
            span = np.s_[expert, i * rows : (i + 1) * rows]
            yield (
                models.fill(part, numbers).replace("{e}", str(expert)),
                tensor.view(lambda raw, span=span: raw[span]),  # type: ignore[misc]
            )
