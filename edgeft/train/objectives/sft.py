"""Supervised fine-tuning: conversations -> token ids with labels, and a trainer with the loss.

The loss is the mean negative log-likelihood of the answer tokens. The head is the largest matrix of
a small model and needs no rows for prompt tokens, so hidden states are selected before it: the loss
and the gradients are those of the model's own forward pass, for a fraction of the work.
"""

# Imported only when a run starts, after the check for the extra.
# ruff: noqa: TID253

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import transformers

from edgeft.data.encoded_rows import IGNORED, lengths
from edgeft.records import Example
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import Encode
from edgeft.train.batches import GroupedSampler, Rows, collate
from edgeft.train.examples import encode_splits
from edgeft.train.options import TrainOptions
from edgeft.train.packing import pack
from edgeft.train.protocol import Objective, without_peft
from edgeft.train.sharded import Sharding
from edgeft.train.shared_prefix import Row, SharedPrefix
from edgeft.train.ship.distillation import Distillation


class SFT(Objective):
    """Learn the assistant's answers; with `train_on_inputs` the prompts, too."""

    rows_begin_alike = True
    """whether rows may have a common beginning that is worth looking for"""

    def __init__(
        self,
        options: TrainOptions,
        train: Sequence[Example],
        validation: Sequence[Example],
        chat: ChatTemplate,
        tokenize: Encode,
    ) -> None:
        self.group_by_length = options.group_by_length
        self.shares_prefix = self.rows_begin_alike and options.shared_prefix and not options.packing
        self.shared_prefix: SharedPrefix | None = None
        encoded, self.validation, self.left_out = encode_splits(
            options, train, validation, chat, tokenize
        )
        self.rows_read, self.examples = len(train), len(encoded)
        self.train = pack(encoded, options.cutoff_length) if options.packing else encoded

    def facts(self) -> dict[str, Any]:
        shared = self.shared_prefix is not None and not self.shared_prefix.why_not
        facts = self.left_out.facts() | {"shared_prefix": shared}
        if len(self.train) < self.examples:
            facts["packed"] = {"examples": self.examples, "rows": len(self.train)}
        return facts

    def trainer(self, model: Any, arguments: dict[str, Any]) -> AnswerTrainer:
        training = transformers.TrainingArguments(**arguments)
        pad = model.config.pad_token_id or 0
        processes = training.world_size
        rows = training.train_batch_size * processes if processes > 1 else 1
        trainer = AnswerTrainer(
            model=model,
            args=training,
            train_dataset=Rows(self.train, rows),
            eval_dataset=Rows(self.validation, rows) if self.validation else None,
            data_collator=lambda batch: collate(batch, pad),
        )
        trainer.group_by_length = self.group_by_length
        if self.shares_prefix:
            longest = max((*lengths(self.train), *lengths(self.validation)))
            self.shared_prefix = SharedPrefix(without_peft(model), longest, training)
            trainer.shared_prefix = self.shared_prefix
        return trainer


class AnswerTrainer(Sharding, transformers.Trainer):  # type: ignore[misc]
    """Trainer whose loss is the mean negative log-likelihood of the learned tokens of a step."""

    group_by_length = True
    shared_prefix: SharedPrefix | None = None
    """computes the common beginning of a micro-batch once"""
    distillation: Distillation | None = None
    """mixes a teacher into the loss of a training step"""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return GroupedSampler(
            lengths(self.train_dataset.encoded),
            self.args.train_batch_size,
            self.args.seed,
            self.group_by_length,
            self.train_dataset.fillers,
        )

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The mean over the batch, or the sum over `num_items_in_batch` of the whole step.

        `num_items_in_batch` counts the learned tokens of all processes. Their gradients are averaged, so
        each multiplies its part of the sum by their number.
        """
        causal_lm = without_peft(self.accelerator.unwrap_model(model))
        head = causal_lm.get_output_embeddings()
        keys = ("input_ids", "attention_mask", "labels", "position_ids")
        batch = {key: inputs[key] for key in keys if key in inputs}
        if self.shared_prefix:
            self.shared_prefix.verify(batch, lambda row: answers_loss(model, head, batch, row))
        row = self.shared_prefix.row(**batch) if self.shared_prefix else None
        # Not the model in it: the wrapper of several processes sums the gradients.
        total, learned, output = answers_loss(model, head, batch, row)
        if self.distillation and model.training:
            total = self.distillation.mix(
                total, output.logits, lambda: answers_loss(model, head, batch, row)[2].logits
            )
        if num_items_in_batch is None:
            loss = total / max(learned, 1)
        else:
            loss = total * self.args.world_size / num_items_in_batch
        # The load-balancing loss of a router, only where config.json has output_router_logits.
        balance = getattr(output, "aux_loss", None)
        if balance is not None:
            parts = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
            loss = loss + causal_lm.router_aux_loss_coef * balance / parts
        return (loss, {"loss": loss}) if return_outputs else loss

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: Any = None,
    ) -> tuple[Any, None, None]:
        with torch.no_grad():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss * self.eval_dataset.share(inputs["labels"]), None, None


def answers_loss(
    model: Any, head: Any, batch: dict[str, torch.Tensor], row: Row | None
) -> tuple[torch.Tensor, int, Any]:
    """(summed negative log-likelihood of the learned tokens, their number, the model's output).

    `model` may be wrapped; `head`: its output layer. `batch`: input_ids, attention_mask and labels, (examples, longest) int64; packed rows have position_ids.
    `row`: the same batch with its common beginning once, or None.
    """
    if row:
        targets = row.targets
        with only_predictors(head, row.predictors):
            output = model(**row.inputs, use_cache=False)
    else:
        labels = batch["labels"][:, 1:]
        learned = labels != IGNORED
        targets = labels[learned]
        # With positions and no mask, transformers keeps the examples of a packed row apart.
        mask = "position_ids" if "position_ids" in batch else "attention_mask"
        with only_rows(head, learned):
            output = model(input_ids=batch["input_ids"], use_cache=False, **{mask: batch[mask]})
    total = torch.nn.functional.cross_entropy(output.logits.float(), targets, reduction="sum")
    return total, len(targets), output


@contextlib.contextmanager
def only_rows(head: Any, learned: torch.Tensor) -> Iterator[None]:
    """Give the output layer only the learned positions.

    `learned`: (batch, length) bool; the head then gets (learned positions, hidden size).
    """
    hook = head.register_forward_pre_hook(
        lambda _, inputs: (inputs[0][:, : learned.shape[1]][learned], *inputs[1:])
    )
    try:
        yield
    finally:
        hook.remove()


@contextlib.contextmanager
def only_predictors(head: Any, predictors: torch.Tensor) -> Iterator[None]:
    """Give the output layer the hidden states of one row at these positions, some more than once.

    `predictors`: (learned positions,) int64; the head then gets (learned positions, hidden size).
    """
    # index_select adds the gradients of a repeated position in a fixed order; indexing does not.
    hook = head.register_forward_pre_hook(
        lambda _, inputs: (inputs[0][0].index_select(0, predictors), *inputs[1:])
    )
    try:
        yield
    finally:
        hook.remove()
