"""A block of transformers' model without weights -> its weights, those that can be quantized listed.

linears = list(load_linears(merged, number, layer))
linears[0].weight                      # (rows, columns), shared with the layer
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgeft import models
from edgeft.merge.view import Merged

STAGES = (
    r"attn_(q|k|v|qkv|q_a|kv_a_mqa)",
    r"attn_(q|kv|k|v)_b",
    r"attn_output",
    r"ffn_(gate|up)(_exps|_shexp)?",
    r"ffn_down(_exps|_shexp)?",
)
"""GGUF names of a block's linear layers; each stage reads what the stages before it compute"""


@dataclass(frozen=True)
class LinearWeight:
    """A matrix of the block that inputs are multiplied with."""

    names: tuple[str, ...]
    """in the checkpoint: the weights that lie below each other in the matrix"""
    weight: Any
    """torch (rows, columns), float32; shares its memory with the block's parameter"""
    stage: int
    """index in STAGES"""
    module: Any
    """the torch module that holds the parameter"""
    expert: int | None = None
    """index in the first dimension of a 3-D parameter; None for a linear layer"""

    def parts(self) -> Iterator[tuple[str, Any]]:
        """(name in the checkpoint, its rows of the matrix)"""
        yield from zip(self.names, self.weight.chunk(len(self.names)), strict=True)


def load_linears(merged: Merged, number: int, layer: Any) -> Iterator[LinearWeight]:
    """Give a block of the skeleton its weights; yields those that can be quantized.

    The memory is torch's own: products differ in their last bits where an array is aligned otherwise.
    """
    import torch

    card = merged.card
    prefix = next(name.partition("{i}")[0] + str(number) for name in card.tensors if "{i}" in name)
    state: dict[str, Any] = {}
    for key, empty in layer.state_dict().items():
        module = layer.get_submodule(key.rpartition(".")[0])
        name = f"{prefix}.{key}"
        general, numbers = models.generalize(name)
        if general not in card.fused:
            stored = card.in_checkpoint(name)
            state[key] = torch.from_numpy(merged.tensor(stored)).view(empty.shape).clone()
            stage = stage_of(card, stored)
            if stage is not None and empty.ndim == 2:
                yield LinearWeight((stored,), state[key], stage, module)
            continue
        state[key] = torch.empty(empty.shape)
        for expert, matrix in enumerate(state[key]):
            parts = [models.fill(part, (*numbers, expert)) for part in card.fused[general]]
            rows = len(matrix) // len(parts)
            for i, part in enumerate(parts):
                matrix[i * rows : (i + 1) * rows] = torch.from_numpy(merged.tensor(part))
            stage = stage_of(card, parts[0])
            if stage is not None:
                yield LinearWeight(tuple(parts), matrix, stage, module, expert)
    layer.load_state_dict(state, assign=True)


def stage_of(card: models.Card, name: str) -> int | None:
    """Index in STAGES of a weight of the checkpoint; None for one that is no linear layer."""
    gguf = "".join(card.gguf_names(name)[0][:1])
    role = gguf.removesuffix(".weight").rpartition(".")[2]
    stages = (i for i, pattern in enumerate(STAGES) if re.fullmatch(pattern, role))
    return next(stages, None) if gguf.endswith(".weight") else None
