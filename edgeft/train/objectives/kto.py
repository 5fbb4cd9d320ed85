"""Kahneman-Tversky optimization (arXiv 2402.01306): answers that are labelled good or bad -> trl's KTOTrainer.

The loss of a good answer is 1 - sigmoid(beta (r - z)), of a bad one 1 - sigmoid(beta (z - r)), with r as in DPO
and z an estimate of the KL divergence to the reference, from answers after the prompt of another row.
"""

# Imported only when a run starts, after the check for the extra.
# ruff: noqa: TID253

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import peft
import torch
import trl

from edgeft.data.encoded_rows import IGNORED, Encoded, EncodedVerdicts, lengths
from edgeft.errors import InputError
from edgeft.records import Example
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import Encode
from edgeft.train.batches import GroupedSampler, collate
from edgeft.train.examples import encode_splits
from edgeft.train.objectives.trl_trainer import (
    Quiet,
    check_head,
    copy_to_reference,
    curves,
    kept_as_it_is,
    tokenizer_of,
    trl_arguments,
)
from edgeft.train.options import TrainOptions
from edgeft.train.protocol import Objective

CURVES = {
    "reward_margin": "rewards/margins",
    "reward_desirable": "rewards/chosen",
    "reward_undesirable": "rewards/rejected",
    "kl": "kl",
}
"""manifest entry -> key of trl's log"""
PREFIXES = ("", "KL_")
"""of the columns of an answer after its own prompt, and after another one"""


class KTO(Objective):
    """Write good answers and not bad ones."""

    train: EncodedVerdicts
    validation: EncodedVerdicts

    def __init__(
        self,
        options: TrainOptions,
        train: Sequence[Example],
        validation: Sequence[Example],
        chat: ChatTemplate,
        tokenize: Encode,
    ) -> None:
        self.options, self.loss_type = options, options.loss_type or "kto"
        if self.loss_type == "kto" and options.micro_batch_size == 1:
            raise InputError(
                "--objective kto estimates the KL divergence within a micro-batch, which must hold two answers",
                "--micro-batch-size 2, or --loss-type apo_zero_unpaired",
            )
        self.train, self.validation, self.left_out = encode_splits(
            options, train, validation, chat, tokenize
        )

    def facts(self) -> dict[str, Any]:
        labels = {"desirable": sum(self.train.desirable), "of": len(self.train)}
        return self.left_out.facts() | {"labels": labels}

    def curves(self, log_history: list[dict[str, Any]]) -> dict[str, Any]:
        """Rewards of good and bad answers, and the KL divergence to the reference."""
        return curves(log_history, CURVES)

    def trainer(self, model: Any, arguments: dict[str, Any]) -> Any:
        options, is_peft = self.options, isinstance(model, peft.PeftModel)
        check_head(model)
        settings = trl_arguments(
            trl.KTOConfig,
            arguments,
            beta=options.beta or 0.1,
            loss_type=self.loss_type,
            desirable_weight=options.desirable_weight or 1.0,
            undesirable_weight=options.undesirable_weight or 1.0,
            precompute_ref_log_probs=not is_peft,
        )
        pad, size = model.config.pad_token_id or 0, settings.per_device_train_batch_size
        # The partner of an answer is of its own batch, so batches are made once and keep their order. It is
        # random: where length goes with the label, a batch by length would hold answers of one label.
        order = list(GroupedSampler(lengths(self.train), size, options.seed, grouped=False))
        with kept_as_it_is(model):
            trainer = VerdictTrainer(
                model=model,
                args=settings,
                train_dataset=rows(self.train, order, size),
                eval_dataset=rows(self.validation, list(range(len(self.validation))), size)
                if self.validation
                else None,
                data_collator=lambda batch: collate_verdicts(batch, pad),
                processing_class=tokenizer_of(options.base),
            )
        if is_peft:
            copy_to_reference(model)
        trainer.processing_class = None  # the trainer would give the model its token ids
        return trainer


class VerdictTrainer(Quiet, trl.KTOTrainer):  # type: ignore[misc]
    """trl's trainer on encoded answers, in the order of its data set."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def rows(answers: EncodedVerdicts, order: list[int], size: int) -> Any:
    """`datasets.Dataset` of the answers in `order`, each with the answer before it in its batch of `size`.

    The first of a batch has the last one. Only a last batch may hold a single answer, which is then its own.
    """
    columns: dict[str, list[Any]] = {f"{prefix}{name}": [] for prefix in PREFIXES
                                     for name in ("ids", "labels")} | {"label": []}  # fmt: skip
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        for own, other in zip(batch, [batch[-1], *batch[:-1]], strict=True):
            for prefix, row in (
                ("", answers[own]),
                ("KL_", mismatched(answers[own], answers[other])),
            ):
                columns[f"{prefix}ids"].append(row.ids)
                columns[f"{prefix}labels"].append(row.labels)
            columns["label"].append(answers.desirable[own])
    return datasets.Dataset.from_dict(columns)


def mismatched(own: Encoded, other: Encoded) -> Encoded:
    """The prompt of one row with the answer of another."""
    cuts = [
        next(i for i, label in enumerate(row.labels) if label != IGNORED) for row in (own, other)
    ]
    return Encoded(
        own.ids[: cuts[0]] + other.ids[cuts[1] :], own.labels[: cuts[0]] + other.labels[cuts[1] :]
    )


def collate_verdicts(batch: list[dict[str, Any]], pad: int) -> dict[str, torch.Tensor]:
    """input_ids, attention_mask and completion_mask, (answers, longest) int64, and those of KL_; label (answers,)."""
    columns: dict[str, torch.Tensor] = {"label": torch.tensor([row["label"] for row in batch])}
    for prefix in PREFIXES:
        sides = [
            {"input_ids": row[f"{prefix}ids"], "labels": row[f"{prefix}labels"]} for row in batch
        ]
        made = collate(sides, pad)
        made["completion_mask"] = (made.pop("labels") != IGNORED).long()
        columns |= {f"{prefix}{name}": tensor for name, tensor in made.items()}
    for name in ("ref_logps", "ref_KL_logps"):
        if name in batch[0]:
            columns[name] = torch.tensor([row[name] for row in batch])
    return columns
