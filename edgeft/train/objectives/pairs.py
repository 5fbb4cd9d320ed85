"""Preference pairs -> encoded pairs, batches of both answers, and the curves of their rewards.

What the objectives that learn from pairs share; `dpo.py` has those with a reference, `odds.py` those without.
"""

# Imported only when a run starts, after the check for the extra.
# ruff: noqa: TID253

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from edgeft.data.encoded_rows import IGNORED, EncodedPairs, lengths
from edgeft.records import Example
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import Encode
from edgeft.train.batches import collate
from edgeft.train.examples import encode_splits
from edgeft.train.objectives.trl_trainer import curves
from edgeft.train.options import TrainOptions
from edgeft.train.protocol import Objective

CURVES = {
    "reward_accuracy": "rewards/accuracies",
    "reward_margin": "rewards/margins",
    "reward_chosen": "rewards/chosen",
    "reward_rejected": "rewards/rejected",
}
"""manifest entry -> key of trl's log"""


class PairObjective(Objective):
    """Learns from encoded pairs."""

    train: EncodedPairs
    validation: EncodedPairs

    def __init__(
        self,
        options: TrainOptions,
        train: Sequence[Example],
        validation: Sequence[Example],
        chat: ChatTemplate,
        tokenize: Encode,
    ) -> None:
        self.options = options
        self.train, self.validation, self.left_out = encode_splits(
            options, train, validation, chat, tokenize
        )

    def facts(self) -> dict[str, Any]:
        return self.left_out.facts()

    def curves(self, log_history: list[dict[str, Any]]) -> dict[str, Any]:
        """Accuracy and margin of the rewards, of the training batches and of the validation pairs."""
        return curves(log_history, CURVES)

    def group(self, trainer: Any) -> Any:
        """The trainer with the lengths by which it makes its batches."""
        both = zip(lengths(self.train.chosen), lengths(self.train.rejected), strict=True)
        trainer.row_lengths = [max(pair) for pair in both]
        trainer.group_by_length = self.options.group_by_length
        return trainer


def rows(pairs: EncodedPairs) -> dict[str, list[list[int]]]:
    """Column -> ids or labels of each pair."""
    columns: dict[str, list[list[int]]] = {}
    for name, side in (("chosen", pairs.chosen), ("rejected", pairs.rejected)):
        columns[f"{name}_ids"] = [row.ids for row in side]
        columns[f"{name}_labels"] = [row.labels for row in side]
    return columns


def collate_pairs(batch: list[dict[str, Any]], pad: int) -> dict[str, torch.Tensor]:
    """input_ids, attention_mask and completion_mask, (2 pairs, longest) int64: first all better answers."""
    sides = [
        {"input_ids": row[f"{name}_ids"], "labels": row[f"{name}_labels"]}
        for name in ("chosen", "rejected")
        for row in batch
    ]
    columns = collate(sides, pad)
    columns["completion_mask"] = (columns.pop("labels") != IGNORED).long()
    for name in ("ref_chosen_logps", "ref_rejected_logps"):
        if name in batch[0]:
            columns[name] = torch.tensor([row[name] for row in batch])
    return columns
