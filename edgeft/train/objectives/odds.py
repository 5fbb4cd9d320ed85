"""Preference pairs without a reference model: ORPO, CPO and SimPO, by trl's losses.

ORPO (arXiv 2403.07691) adds the log of the answers' odds ratio to the loss of SFT on the better answer, CPO
(arXiv 2401.08417) the loss of DPO with a uniform reference. SimPO (arXiv 2405.14734) compares the mean
log-probabilities of the answers' tokens, with a margin, and has no loss of SFT.
"""

# Imported only when a run starts, after the check for the extra.
# ruff: noqa: TID253

from __future__ import annotations

from typing import Any

import torch
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from edgeft.train.objectives.pairs import PairObjective, collate_pairs, rows
from edgeft.train.objectives.sft import only_rows
from edgeft.train.objectives.trl_trainer import (
    Quiet,
    kept_as_it_is,
    tokenizer_of,
    trl_arguments,
)
from edgeft.train.protocol import without_peft


class ORPO(PairObjective):
    """Learn the better answers, and that their odds are larger than those of the worse ones."""

    def settings(self, arguments: dict[str, Any]) -> Any:
        options = self.options
        return trl_arguments(ORPOConfig, arguments, beta=options.beta or 0.1, disable_dropout=False)

    def make(self, **more: Any) -> Any:
        return OddsTrainer(**more)

    def trainer(self, model: Any, arguments: dict[str, Any]) -> Any:
        pad = model.config.pad_token_id or 0
        with kept_as_it_is(model):
            trainer = self.make(
                model=model,
                args=self.settings(arguments),
                train_dataset=PairRows(rows(self.train)),
                eval_dataset=PairRows(rows(self.validation)) if self.validation else None,
                data_collator=lambda batch: collate_pairs(batch, pad),
                processing_class=tokenizer_of(self.options.base),
            )
        trainer.processing_class = None  # the trainer would give the model its token ids
        return self.group(trainer)


class CPO(ORPO):
    """Learn the better answers, and prefer them to the worse ones."""

    def settings(self, arguments: dict[str, Any]) -> Any:
        options = self.options
        return trl_arguments(
            CPOConfig,
            arguments,
            beta=options.beta or 0.1,
            loss_type=options.loss_type or "sigmoid",
            label_smoothing=options.label_smoothing,
            disable_dropout=False,
        )

    def make(self, **more: Any) -> Any:
        return ContrastiveTrainer(**more)


class SimPO(CPO):
    """Prefer the better answers by the mean log-probability of their tokens."""

    def settings(self, arguments: dict[str, Any]) -> Any:
        options = self.options
        return trl_arguments(
            CPOConfig,
            arguments,
            beta=options.beta or 2.0,
            loss_type="simpo",
            simpo_gamma=options.simpo_gamma or 0.5,
            label_smoothing=options.label_smoothing,
            cpo_alpha=0.0,
            disable_dropout=False,
        )


class PairRows(torch.utils.data.Dataset):  # type: ignore[misc]
    """Encoded pairs; what trl would map over a data set is done."""

    def __init__(self, columns: dict[str, list[list[int]]]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns["chosen_ids"])

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return {name: column[index] for name, column in self.columns.items()}

    def map(self, *args: Any, **kwargs: Any) -> PairRows:
        return self


class LearnedTokens(Quiet):
    """trl's forward pass of a batch, from the learned tokens alone."""

    loss_is_scaled_for_ga = False
    is_mean = False
    """whether an answer's log-probability is the mean over its tokens, whatever the loss"""

    def concatenated_forward(self, model: Any, batch: dict[str, torch.Tensor]) -> tuple[Any, ...]:
        """(log-probabilities of the better answers, of the worse ones, logits of both for trl's log, mean
        loss of the better answers' tokens), and a router's loss where the model has one.

        The log-probability of an answer is a sum, and the mean over its tokens where trl's loss wants that.
        """
        trainer: Any = self
        learned = batch["completion_mask"][:, 1:].bool()
        targets = batch["input_ids"][:, 1:][learned]
        more = {"output_router_logits": True} if trainer.aux_loss_enabled else {}
        head = without_peft(trainer.accelerator.unwrap_model(model)).get_output_embeddings()
        with only_rows(head, learned):
            output = model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"],
                use_cache=False, **more,
            )  # fmt: skip
        losses = torch.nn.functional.cross_entropy(output.logits.float(), targets, reduction="none")
        owners = learned.nonzero()[:, 0]
        sums = torch.zeros(len(learned), device=losses.device).index_add(0, owners, -losses)
        half = len(learned) // 2
        loss = -sums[:half].sum() / learned[:half].sum()
        if self.is_mean or trainer.loss_type in ("ipo", "simpo"):
            sums = sums / learned.sum(1)
        better = int((owners < half).sum())
        logits = output.logits.detach()
        parts = (sums[:half], sums[half:], logits[:better], logits[better:], loss)
        return (*parts, output.aux_loss) if trainer.aux_loss_enabled else parts


class OddsTrainer(LearnedTokens, ORPOTrainer):  # type: ignore[misc]
    """ORPO's loss."""

    is_mean = True


class ContrastiveTrainer(LearnedTokens, CPOTrainer):  # type: ignore[misc]
    """CPO's losses, SimPO's among them."""
