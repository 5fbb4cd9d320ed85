"""Direct preference optimization (arXiv 2305.18290) and its relatives: preference pairs -> trl's DPOTrainer.

The loss of a pair is -log sigmoid(beta (r(better) - r(worse))), r = log p(answer) - log p_reference(answer).
The reference is the model as the training began: the base, or the base with the adapter that is trained on.
"""

# Imported only when a run starts, after the check for the extra.
# ruff: noqa: TID253

from __future__ import annotations

from typing import Any

import datasets
import peft
import trl

from edgeft.train.objectives.pairs import PairObjective, collate_pairs, rows
from edgeft.train.objectives.trl_trainer import (
    Quiet,
    check_head,
    copy_to_reference,
    kept_as_it_is,
    tokenizer_of,
    trl_arguments,
)

BETA = 0.1


class DPO(PairObjective):
    """Prefer the better answer of a pair to the worse one."""

    def trainer(self, model: Any, arguments: dict[str, Any]) -> Any:
        options, is_peft = self.options, isinstance(model, peft.PeftModel)
        check_head(model)
        settings = trl_arguments(
            trl.DPOConfig,
            arguments,
            beta=options.beta or BETA,
            loss_type=[options.loss_type or "sigmoid"],
            label_smoothing=options.label_smoothing,
            # A model without an adapter has no other copy of what it began as.
            precompute_ref_log_probs=not is_peft,
        )
        pad = model.config.pad_token_id or 0
        held_out = self.validation
        with kept_as_it_is(model):
            trainer = PairTrainer(
                model=model,
                args=settings,
                train_dataset=datasets.Dataset.from_dict(rows(self.train)),
                eval_dataset=datasets.Dataset.from_dict(rows(held_out)) if held_out else None,
                data_collator=lambda batch: collate_pairs(batch, pad),
                processing_class=tokenizer_of(options.base),
            )
        if is_peft:
            copy_to_reference(model)
        trainer.processing_class = None  # the trainer would give the model its token ids
        return self.group(trainer)


class PairTrainer(Quiet, trl.DPOTrainer):  # type: ignore[misc]
    """trl's trainer on encoded pairs."""
