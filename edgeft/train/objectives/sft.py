"""The trainer: transformers' loop with the loss computed where there is something to learn.

The head is the largest matrix of a small model and needs no rows for prompt tokens, so hidden
states are selected on their way into it: the model's own loss and gradients, a fraction of the work.
"""

from __future__ import annotations

from typing import Any

import torch  # noqa: TID253 - this module is imported by sft.py only after the check for the extra
import transformers  # noqa: TID253

from edgeft.data.encoding import IGNORED
from edgeft.progress import Progress
from edgeft.train.batches import Batches, only_rows


class AnswerTrainer(transformers.Trainer):  # type: ignore[misc]
    """Trainer whose loss is the mean negative log-likelihood of the answer tokens of a step."""

    grouped = True

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        lengths = list(self.train_dataset["length"])
        return Batches(lengths, self.args.train_batch_size, self.args.seed, self.grouped)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        inner = self.accelerator.unwrap_model(model).get_base_model()
        labels = inputs["labels"][:, 1:]
        learned = labels != IGNORED
        with only_rows(inner.get_output_embeddings(), learned):
            output = inner(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                use_cache=False,
            )
        total = torch.nn.functional.cross_entropy(
            output.logits.float(), labels[learned], reduction="sum"
        )
        loss = total / (learned.sum() if num_items_in_batch is None else num_items_in_batch)
        balance = getattr(output, "aux_loss", None)
        if balance is not None:  # of a router: only where config.json asks for output_router_logits
            parts = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
            loss = loss + inner.router_aux_loss_coef * balance / parts
        return (loss, {"loss": loss}) if return_outputs else loss

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: Any = None,
    ) -> tuple[Any, None, None]:
        with torch.no_grad():
            return self.compute_loss(model, self._prepare_inputs(inputs)), None, None


class ProgressCallback(transformers.TrainerCallback):  # type: ignore[misc]
    """Feeds the bar; counts the tokens that were really computed, padding left out."""

    def __init__(self, bar: Progress) -> None:
        self.bar = bar
        self._tokens = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.start_at(state.global_step)
        self._tokens = int(state.num_input_tokens_seen)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any
    ) -> None:
        seen = int(state.num_input_tokens_seen) - self._tokens
        self._tokens += seen
        if "loss" in logs:
            self.bar.update(1, units=seen, loss=logs["loss"])
        elif "eval_loss" in logs:
            self.bar.update(0, validation=logs["eval_loss"])
