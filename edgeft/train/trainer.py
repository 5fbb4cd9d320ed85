"""The trainer: transformers' loop with the loss computed where there is something to learn.

The head is the largest matrix of a small model and needs no rows for prompt tokens, so hidden
states are selected on their way into it: the model's own loss and gradients, a fraction of the work.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import torch  # noqa: TID253 - this module is imported by sft.py only after the check for the extra
import transformers  # noqa: TID253

from edgeft.dataset import IGNORED, Encoded
from edgeft.progress import Progress


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
        with _rows_of(inner.get_output_embeddings(), learned):
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


@contextlib.contextmanager
def _rows_of(head: Any, chosen: torch.Tensor) -> Iterator[None]:
    """Let the output layer see the chosen positions only: what comes after it is the model's own."""
    hook = head.register_forward_pre_hook(
        lambda _, inputs: (inputs[0][:, : chosen.shape[1]][chosen], *inputs[1:])
    )
    try:
        yield
    finally:
        hook.remove()


class Batches(torch.utils.data.Sampler):  # type: ignore[misc]
    """An order of examples whose consecutive batches are of similar length, in random order.

    transformers' own LengthGroupedSampler leaves 50 batches at a time sorted by length; where
    length goes with the kind of answer, the model then sees one kind for many steps and forgets
    the others (validation loss .225 against .033 on the smart_home task).
    """

    def __init__(self, lengths: list[int], size: int, seed: int, grouped: bool = True) -> None:
        self.lengths, self.size, self.seed, self.grouped = lengths, size, seed, grouped
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        draw = random.Random(f"{self.seed}/{self.epoch}")
        order = list(range(len(self.lengths)))
        draw.shuffle(order)
        if not self.grouped:
            return iter(order)
        pool = 8 * self.size
        batches = []
        for start in range(0, len(order), pool):
            near = sorted(order[start : start + pool], key=lambda i: self.lengths[i])
            batches += [near[i : i + self.size] for i in range(0, len(near), self.size)]
        short = [batches.pop()] if len(batches[-1]) < self.size else []
        draw.shuffle(batches)
        return iter([i for batch in [*batches, *short] for i in batch])


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


def as_dataset(encoded: list[Encoded]) -> Any:
    import datasets

    return datasets.Dataset.from_dict(
        {
            "input_ids": [item.ids for item in encoded],
            "labels": [item.labels for item in encoded],
            "length": [len(item.ids) for item in encoded],
        }
    )


def collate(batch: list[dict[str, Any]], pad: int) -> dict[str, torch.Tensor]:
    """Right-padded (batch, longest) int64 tensors."""
    width = max(len(row["input_ids"]) for row in batch)

    def padded(key: str, fill: int) -> torch.Tensor:
        return torch.tensor([row[key] + [fill] * (width - len(row[key])) for row in batch])

    lengths = torch.tensor([len(row["input_ids"]) for row in batch])
    mask = torch.arange(width)[None, :] < lengths[:, None]
    return {
        "input_ids": padded("input_ids", pad),
        "attention_mask": mask.long(),
        "labels": padded("labels", IGNORED),
    }
