"""Prompts and rewards -> GRPO (arXiv 2402.03300) and RLOO (arXiv 2402.14740) by trl's trainers.

The model writes several answers to each prompt. An answer whose reward is above that of the others becomes more
likely. `--beta` holds the model to the one that it began as.
"""

# Imported only when a run starts, after the check for the extra.
# ruff: noqa: TID253

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets
import peft
import torch
import trl

from edgeft.data.encoded_rows import EncodedPrompts
from edgeft.errors import InputError
from edgeft.records import Example
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import Encode
from edgeft.tokenizer.stops import stop_ids
from edgeft.train.examples import encode_splits
from edgeft.train.new_tokens import tokenizer_folder
from edgeft.train.objectives.trl_trainer import (
    Silent,
    check_head,
    copy_to_reference,
    curves,
    kept_as_it_is,
    tokenizer_of,
    trl_arguments,
)
from edgeft.train.options import TrainOptions
from edgeft.train.protocol import Objective, without_peft
from edgeft.train.rewards import load_rewards

CURVES = {
    "reward": "reward",
    "reward_std": "reward_std",
    "equal_rewards": "frac_reward_zero_std",
    "kl": "kl",
    "answer_tokens": "completions/mean_length",
    "cut_off": "completions/clipped_ratio",
}
"""manifest entry -> key of trl's log"""


class GRPO(Objective):
    """Write answers with larger rewards than the other answers to the same prompt."""

    train: EncodedPrompts
    validation: EncodedPrompts
    config: Any = trl.GRPOConfig
    default_beta = 0.04
    """of the paper; trl's own default is 0"""
    fewest_generations = 2
    log_keys: Mapping[str, str] = CURVES
    """manifest entry -> key of trl's log"""

    def __init__(
        self,
        options: TrainOptions,
        train: Sequence[Example],
        validation: Sequence[Example],
        chat: ChatTemplate,
        tokenize: Encode,
    ) -> None:
        self.options, self.tokenize, self.chat = options, tokenize, chat
        self.rewards = load_rewards(options.reward, tokenize)
        if options.generations < self.fewest_generations:
            raise InputError(
                "the answers to a prompt are compared, so --generations is at least 2",
                "--generations 8",
            )
        if options.batch_size % options.generations:
            raise InputError(
                f"--batch-size {options.batch_size} counts answers and is no multiple of "
                f"--generations {options.generations}",
                f"--batch-size {options.generations * math.ceil(options.batch_size / options.generations)}",
            )
        self.train, self.validation, self.left_out = encode_splits(
            options, train, validation, chat, tokenize
        )
        self.answers_per_row = options.generations

    def facts(self) -> dict[str, Any]:
        return self.left_out.facts()

    def curves(self, log_history: list[dict[str, Any]]) -> dict[str, Any]:
        """Rewards of the answers, each by its name, too; KL divergence to the reference; answers' lengths."""
        names = {**self.log_keys} | {
            f"reward_{r.__name__}": f"rewards/{r.__name__}/mean" for r in self.rewards
        }
        tokens = [row["num_tokens"] for row in log_history if "num_tokens" in row]
        return curves(log_history, names) | {"tokens": int(tokens[-1]) if tokens else 0}

    def trainer(self, model: Any, arguments: dict[str, Any]) -> Any:
        options = self.options
        check_head(model)
        is_peft = isinstance(model, peft.PeftModel)
        beta = options.beta or (self.default_beta if is_peft else 0.0)
        folder = tokenizer_folder(options)
        stops = list(stop_ids(self.chat, folder))
        with kept_as_it_is(model):
            without_peft(model).generation_config.eos_token_id = stops
            trainer = self.make(
                model=model,
                args=self.settings(arguments, beta=beta),
                reward_funcs=self.rewards,
                train_dataset=rows(self.train),
                eval_dataset=rows(self.validation) if self.validation else None,
                processing_class=tokenizer_of(folder),
            )
        trainer.tokenize = self.tokenize
        if is_peft and beta:
            copy_to_reference(model)
        return trainer

    def settings(self, arguments: dict[str, Any], **more: Any) -> Any:
        """trl's configuration; `more`: of its fields."""
        options = self.options
        fields = {
            "num_generations": options.generations,
            "num_generations_eval": 1,
            "max_completion_length": options.max_new_tokens,
            "temperature": options.temperature,
            **({"loss_type": options.loss_type} if options.loss_type else {}),
        }
        return trl_arguments(self.config, arguments, **fields | more)

    def make(self, **more: Any) -> Any:
        return GroupTrainer(**more)


class RLOO(GRPO):
    """Write answers with larger rewards than the mean of the other answers to the same prompt."""

    config = trl.RLOOConfig
    default_beta = 0.05

    def make(self, **more: Any) -> Any:
        return LeaveOneOutTrainer(**more)


def rows(prompts: EncodedPrompts) -> Any:
    """`datasets.Dataset` of the prompts' texts and reference answers."""
    return datasets.Dataset.from_dict({"prompt": prompts.texts, "answer": prompts.answers})


class EncodedHere(Silent):
    """Encodes prompts as SFT does; keeps the model's own token ids."""

    tokenize: Encode

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [self.tokenize(text) for text in prompts], None, {}

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        trainer: Any = super()
        return PromptSampler(trainer._get_train_sampler(dataset), self.args.seed)  # type: ignore[attr-defined]


class PromptSampler(torch.utils.data.Sampler):  # type: ignore[misc]
    """trl's order of prompts, which a run that is resumed in a later epoch has, too.

    trl draws the order of an epoch from what the epochs before it left of the random numbers.
    """

    def __init__(self, order: Any, seed: int) -> None:
        self.order, self.seed = order, seed

    def set_epoch(self, epoch: int) -> None:
        self.order.generator.manual_seed(self.seed + epoch)

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order)


class GroupTrainer(EncodedHere, trl.GRPOTrainer):  # type: ignore[misc]
    """trl's GRPO on prompts that edgeft encodes."""


class LeaveOneOutTrainer(EncodedHere, trl.RLOOTrainer):  # type: ignore[misc]
    """trl's RLOO on prompts that edgeft encodes."""
