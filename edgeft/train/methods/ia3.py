"""IA3 (arXiv 2205.05638): factors of keys, values and the inputs of the last feed-forward layer.

The result is an adapter in peft's format. It merges exactly: a factor multiplies a row or a column of
a weight.
"""

# Imported only when a run starts, after the check for the extra.
# ruff: noqa: TID253

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import peft

from edgeft.errors import InputError
from edgeft.models import Card
from edgeft.train.methods.peft_method import PeftMethod
from edgeft.train.options import TrainOptions

OUTPUTS = ("attn_k", "attn_v", "attn_qkv", "attn_kv_b", "attn_k_b", "attn_v_b")
"""GGUF names of the layers whose outputs are scaled"""
INPUTS = ("ffn_down",)
"""GGUF names of the layers whose inputs are scaled"""


class IA3(PeftMethod):
    """Factors on linear layers."""

    def __init__(self, options: TrainOptions, card: Card) -> None:
        super().__init__(options, card)
        if not self.targets:
            raise InputError(f"the {card.family} family has no layers for IA3", "--target-modules")

    def default_targets(self) -> Sequence[str]:
        targets = {*_modules(self.card, OUTPUTS), *_modules(self.card, INPUTS)}
        return [target for target in self.card.lora_targets if target in targets]

    def config(self) -> Any:
        inputs, targets = _modules(self.card, INPUTS), self.targets
        if not isinstance(targets, str):  # peft wants a subset
            inputs = [name for name in targets if name.rpartition(".")[2] in inputs]
        return peft.IA3Config(
            target_modules=targets, feedforward_modules=inputs, task_type="CAUSAL_LM"
        )


def _modules(card: Card, gguf_parts: Sequence[str]) -> list[str]:
    """Last parts of the names of the layers that the card maps to these GGUF tensors."""
    names = {
        name.split(".")[-2]
        for name, gguf in card.tensors.items()
        for gguf_name in ([gguf] if isinstance(gguf, str) else gguf)
        if name.endswith(".weight") and gguf_name.split(".")[-2] in gguf_parts
    }
    return sorted(names)
