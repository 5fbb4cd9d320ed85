"""The loss with a teacher: the oracle is the same model before its weights were rounded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgeft.weights.text_base import open_base
from helpers.adapters import with_lora
from helpers.shipping import move_on


def test_the_loss_is_mixed_with_the_divergence_from_the_first_adapter(tiny_base: Path) -> None:
    import torch

    from edgeft.train.ship.distillation import Distillation
    from edgeft.train.ship.weights import ShipWeights

    model = with_lora(tiny_base, ["q_proj", "up_proj"])
    ids = torch.arange(24)[None]
    ship = ShipWeights(model, open_base(tiny_base), "q4_0", teaches=True)
    distillation = Distillation(ship, 0.25)
    total = torch.tensor(3.0)
    assert distillation.mix(total, model(ids).logits, no_teacher) is total
    ship.start()
    unrounded = move_on(model, ship)
    logits = model(ids).logits[0]
    mixed = distillation.mix(total, logits, lambda: model(ids).logits[0])
    with torch.no_grad():
        teacher = unrounded(ids).logits[0].log_softmax(-1)
    divergence = (teacher.exp() * (teacher - logits.log_softmax(-1))).sum()
    assert divergence > 0.01
    assert mixed.item() == pytest.approx((0.75 * total + 0.25 * divergence).item(), rel=1e-5)
    assert torch.equal(model(ids).logits[0], logits), "the model is as it was"


def no_teacher() -> Any:
    raise AssertionError("before the first step with the file's values there is no teacher")
