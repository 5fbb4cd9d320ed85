"""Layers at the values of a file + the adapter before its rounding -> a loss that pulls the first to the second.

    distillation = Distillation(ship, share=0.5)            # before the first step
    loss = distillation.mix(total, logits, lambda: teacher_logits())

The loss is (1 - share) times the negative log-likelihood of the answers plus `share` times the
Kullback-Leibler divergence of the model from its teacher on the answer tokens (knowledge distillation,
arXiv 1503.02531, at temperature 1). The teacher is the adapter that the training began with, with the
weights that are not rounded; what does not train, such as the embedding, is as in the file.
"""

# Imported only when a run starts, after the check for the extra.
# ruff: noqa: TID253

from __future__ import annotations

from collections.abc import Callable

import torch

from edgeft.train.ship.weights import ShipWeights


class Distillation:
    """The loss with a teacher; without a share the loss alone."""

    def __init__(self, ship: ShipWeights, share: float) -> None:
        self._ship, self._share = ship, share

    def mix(
        self, total: torch.Tensor, logits: torch.Tensor, teacher: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        """`total`: summed negative log-likelihood; `logits`: (tokens, vocabulary); `teacher` computes
        those of the same tokens and is called with the teacher's weights. Before the first step with the
        file's values `total` alone."""
        if not self._share or not self._ship.started:
            return total
        with torch.no_grad(), self._ship.as_begun():
            target = teacher().float().log_softmax(-1)
        divergence = torch.nn.functional.kl_div(
            logits.float().log_softmax(-1), target, reduction="sum", log_target=True
        )
        return (1 - self._share) * total + self._share * divergence
