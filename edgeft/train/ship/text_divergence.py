"""Plain text -> gradients that hold the model's probabilities of it where they were (`--ship-text`).

    text = TextDivergence(ship, model, text_windows(path, tokenizer_folder, steps))
    text.backward(step)             # before the losses of a step, whose gradients are added

The chats of a fine-tune hold few of a language's words. A training on them alone repairs the damage of rounding to
these words, and not to others. Here each step also reads a piece of another text. Its loss is the Kullback-Leibler
divergence of the model from a teacher: the adapter that the training began with, on weights that are not rounded
(`ShipWeights.as_begun`). This is distillation for quantization without labels (arXiv 2305.17888).
"""

# Imported only when a run starts, after the check for the extra.
# ruff: noqa: TID253

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from edgeft.train.ship.weights import ShipWeights

TEXT_WEIGHT = 0.3
"""of the divergence in nats a token, beside the loss of the answers"""


class TextDivergence:
    """The windows in turn, one a step."""

    def __init__(self, ship: ShipWeights, model: Any, windows: Sequence[Sequence[int]]) -> None:
        """`model`: the causal language model that `ship` has the layers of."""
        self._ship, self._model, self._windows = ship, model, windows

    def backward(self, step: int) -> float:
        """Add the gradients of this step's loss; returns the divergence, nats a token.

        `step`: 0 for the first one with the file's values.
        """
        ids = torch.tensor([self._windows[step % len(self._windows)]])
        with torch.no_grad(), self._ship.as_begun():
            target = self._log_probabilities(ids)
        divergence = (
            torch.nn.functional.kl_div(
                self._log_probabilities(ids), target, reduction="sum", log_target=True
            )
            / ids.shape[1]
        )
        (TEXT_WEIGHT * divergence).backward()
        return float(divergence.detach())

    def _log_probabilities(self, ids: torch.Tensor) -> torch.Tensor:
        """(tokens, vocabulary) float32 of ids (1, tokens)."""
        logits: torch.Tensor = self._model(input_ids=ids, use_cache=False).logits
        return logits[0].float().log_softmax(-1)
