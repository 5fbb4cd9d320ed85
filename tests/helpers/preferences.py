"""Preference pairs for the tiny model, and their log-probabilities by transformers alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeft.data.encoded_rows import IGNORED, Encoded


def make_pairs(path: Path, count: int = 24) -> Path:
    """The better answer has a lamp on; prompts and answers differ in length."""
    rows = [
        {
            "prompt": f"lamp {i}" + "!" * (i % 5),
            "chosen": "on" + " on" * (i % 3),
            "rejected": "off, " * (i % 2) + "off",
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answer_log_probability(model: Any, row: Encoded) -> float:
    """Sum over the learned tokens of one conversation."""
    import torch

    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row.ids])).logits[0, :-1]
    logps = torch.log_softmax(logits.float(), -1)
    return sum(float(logps[i, label]) for i, label in enumerate(row.labels[1:]) if label != IGNORED)


def log_probabilities(model: Any, rows: Sequence[Encoded]) -> list[float]:
    return [answer_log_probability(model, row) for row in rows]
