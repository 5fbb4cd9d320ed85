"""Encoded examples -> batches: similar lengths together, padded tensors."""

# Imported only when a run starts, after the check for the extra.
# ruff: noqa: TID253

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from edgeft.data.encoded_rows import IGNORED, Encoded
from edgeft.train.packing import Packed

POOL_BATCHES = 8
"""batches whose examples are sorted by length together"""
FILLER_TOKENS = 2
"""of a row that no example is in"""


class GroupedSampler(torch.utils.data.Sampler):  # type: ignore[misc]
    """An order of examples whose batches have similar lengths, the batches in random order.

    transformers' own LengthGroupedSampler leaves 50 batches at a time sorted by length; where
    length goes with the kind of answer, the model then sees one kind for many steps and forgets
    the others (validation loss .225 against .033 on the smart_home task).
    """

    def __init__(
        self,
        lengths: list[int],
        batch_size: int,
        seed: int,
        grouped: bool = True,
        fillers: int = 0,
    ) -> None:
        """`lengths`: tokens of each example. Without `grouped` the order is random.

        `fillers`: rows behind the examples, which go last (`Rows`).
        """
        self.lengths, self.batch_size, self.seed, self.grouped = lengths, batch_size, seed, grouped
        self.fillers = range(len(lengths), len(lengths) + fillers)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The trainer says it; each epoch has another order."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) + len(self.fillers)

    def __iter__(self) -> Iterator[int]:
        yield from self._order()
        yield from self.fillers

    def _order(self) -> list[int]:
        draw = random.Random(f"{self.seed}/{self.epoch}")
        order = list(range(len(self.lengths)))
        draw.shuffle(order)
        if not self.grouped:
            return order
        pool = POOL_BATCHES * self.batch_size
        batches = []
        for start in range(0, len(order), pool):
            by_length = sorted(order[start : start + pool], key=lambda i: self.lengths[i])
            batches += [
                by_length[i : i + self.batch_size]
                for i in range(0, len(by_length), self.batch_size)
            ]
        # A short batch goes last: elsewhere it would shift the borders of all after it.
        short = [batches.pop()] if len(batches[-1]) < self.batch_size else []
        draw.shuffle(batches)
        return [i for batch in [*batches, *short] for i in batch]


class Rows(torch.utils.data.Dataset):  # type: ignore[misc]
    """Encoded examples as the trainer reads them: input_ids and labels, and position_ids of packed rows.

    Behind the examples lie fillers, short rows of which nothing is learned, so that several processes have
    equally many full batches. accelerate would take examples twice for that.
    """

    def __init__(self, encoded: Sequence[Encoded], multiple_of: int = 1) -> None:
        """`multiple_of`: examples and fillers together are a multiple of it."""
        self.encoded = encoded
        self.fillers = -len(encoded) % multiple_of

    def __len__(self) -> int:
        return len(self.encoded) + self.fillers

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        index = range(len(self))[index]  # IndexError behind the last one, which ends a loop
        is_filler = index >= len(self.encoded)
        row = self.encoded[0 if is_filler else index]
        columns = {"input_ids": row.ids, "labels": row.labels}
        if isinstance(row, Packed):
            columns["position_ids"] = row.positions
        if is_filler:
            columns = {name: values[:FILLER_TOKENS] for name, values in columns.items()}
            columns["labels"] = [IGNORED] * len(columns["input_ids"])
        return columns

    def share(self, labels: torch.Tensor) -> float:
        """Factor of the mean loss of an evaluated batch, so that the mean over all rows is that over the examples.

        `labels`: (rows, longest) int64 of the batch.
        """
        if not self.fillers:
            return 1.0
        examples = int((labels[:, 1:] != IGNORED).any(1).sum())
        return examples / len(labels) * len(self) / len(self.encoded)


def collate(batch: list[dict[str, Any]], pad: int) -> dict[str, torch.Tensor]:
    """input_ids, attention_mask and labels as (batch, longest) int64 tensors, padded right.

    `pad`: the id behind the shorter examples; their labels there are IGNORED. Packed rows also have
    position_ids; those of the padding begin at 0 again, so that it is an example of its own.
    """
    width = max(len(row["input_ids"]) for row in batch)

    def padded(key: str, fill: int) -> torch.Tensor:
        return torch.tensor([row[key] + [fill] * (width - len(row[key])) for row in batch])

    lengths = torch.tensor([len(row["input_ids"]) for row in batch])
    mask = torch.arange(width)[None, :] < lengths[:, None]
    columns = {
        "input_ids": padded("input_ids", pad),
        "attention_mask": mask.long(),
        "labels": padded("labels", IGNORED),
    }
    if "position_ids" not in batch[0]:
        return columns
    positions = [
        row["position_ids"] + list(range(width - len(row["position_ids"]))) for row in batch
    ]
    return columns | {"position_ids": torch.tensor(positions)}
