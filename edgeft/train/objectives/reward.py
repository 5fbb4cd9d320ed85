"""A reward model: pairs of a better and a worse answer -> a scalar head that rates a conversation.

The loss of a pair is -log sigmoid(s(better) - s(worse)) (Bradley-Terry; arXiv 2203.02155, equation 1). The result
is peft's adapter of the task SEQ_CLS: what the method trains, and the head `score`. It is no language model: it
rates (`edgeft score`, `--reward FOLDER`), and merges into a model that rates.
"""

# Imported only when a run starts, after the check for the extra.
# ruff: noqa: TID253

from __future__ import annotations

import copy
from typing import Any

import datasets
import peft
import torch
import transformers
import trl

from edgeft.errors import InputError
from edgeft.train.objectives.pairs import PairObjective, collate_pairs, rows
from edgeft.train.objectives.trl_trainer import (
    Quiet,
    curves,
    kept_as_it_is,
    tokenizer_of,
    trl_arguments,
)

HEAD = "score"
"""transformers' name of the scalar head"""
CURVES = {"reward_accuracy": "accuracy", "reward_margin": "margin", "reward_mean": "mean_reward"}
"""manifest entry -> key of trl's log"""


class Reward(PairObjective):
    """Rate the better answer of a pair above the worse one."""

    def curves(self, log_history: list[dict[str, Any]]) -> dict[str, Any]:
        """Accuracy, margin and mean of the scores, of the training batches and of the validation pairs."""
        return curves(log_history, CURVES)

    def trainer(self, model: Any, arguments: dict[str, Any]) -> Any:
        add_head(model, self.options.seed)
        pad = model.config.pad_token_id
        held_out = self.validation
        with kept_as_it_is(model):
            trainer = ScoreTrainer(
                model=model,
                args=trl_arguments(trl.RewardConfig, arguments, disable_dropout=False),
                train_dataset=datasets.Dataset.from_dict(rows(self.train)),
                eval_dataset=datasets.Dataset.from_dict(rows(held_out)) if held_out else None,
                data_collator=lambda batch: collate_scores(batch, pad),
                processing_class=tokenizer_of(self.options.base),
            )
        trainer.processing_class = None  # the trainer would give the model its token ids
        return self.group(trainer)


class ScoreTrainer(Quiet, trl.RewardTrainer):  # type: ignore[misc]
    """trl's trainer on encoded pairs."""

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: Any = None,
    ) -> tuple[Any, None, None]:
        with torch.no_grad():
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None


def collate_scores(batch: list[dict[str, Any]], pad: int) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask, (2 pairs, longest) int64: first all better answers."""
    columns = collate_pairs(batch, pad)
    del columns["completion_mask"]
    return columns


class Head(torch.nn.Linear):  # type: ignore[misc]
    """A linear layer in its own type, float32, over states of any type."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = super().forward(states.to(self.weight.dtype))
        return scores


def add_head(model: Any, seed: int) -> None:
    """Put transformers' model for sequence classification around the base of peft's `model`, in place.

    Its head has one row, begins at random by `seed`, and trains. InputError where the family has no such class.
    """
    causal_lm = model.get_base_model()
    config = copy.deepcopy(causal_lm.config)
    config.num_labels = 1
    if config.pad_token_id is None:
        end = config.eos_token_id
        config.pad_token_id = end[0] if isinstance(end, list) else end or 0
    try:
        with torch.device("meta"):
            classifier = transformers.AutoModelForSequenceClassification.from_config(config)
    except ValueError:
        raise InputError(
            f"transformers has no model with a scalar head for {config.model_type}",
            "a base of another family, such as llama or qwen2",
        ) from None
    setattr(classifier, classifier.base_model_prefix, causal_lm.base_model)
    transformers.set_seed(seed)
    head = Head(config.hidden_size, 1, bias=False)
    torch.nn.init.normal_(head.weight, std=getattr(config, "initializer_range", 0.02))
    setattr(classifier, HEAD, head.to(causal_lm.device))
    model.base_model.model = classifier
    adapter = model.peft_config["default"]
    adapter.task_type, adapter.modules_to_save = "SEQ_CLS", [HEAD]
    peft.utils.other._set_trainable(
        model, "default", [HEAD], False, wrapper_cls=peft.utils.other.ModulesToSaveWrapper
    )
    for name, weight in model.named_parameters():
        if f".{HEAD}.modules_to_save." in name:
            weight.requires_grad_(True)
