"""Examples -> batches: grouped by length, padded, collated."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import torch  # noqa: TID253 - this module is imported by sft.py only after the check for the extra

from edgeft.data.encoding import IGNORED, Encoded


@contextlib.contextmanager
def only_rows(head: Any, chosen: torch.Tensor) -> Iterator[None]:
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
