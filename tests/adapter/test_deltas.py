"""A change of a weight is added to one base after another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeft.merge.view import Merged, open_merged
from edgeft.weights.checkpoint import Array, Checkpoint, Rows
from helpers.tiny import make_base


class Doubled:
    """Twice the stored weights."""

    def __init__(self, weights: Checkpoint) -> None:
        self._weights = weights

    def rows(self, name: str, rows: Rows) -> Array:
        return 2 * self._weights.rows(name, rows)


@pytest.fixture
def views(tmp_path: Path) -> tuple[Merged, Merged]:
    """Two views of the same base and a DoRA adapter on the embedding."""
    import peft
    import torch
    import transformers

    base = make_base(tmp_path / "base")
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = peft.LoraConfig(r=4, target_modules=["embed_tokens"], use_dora=True)
    live = peft.get_peft_model(model, config)
    with torch.no_grad():
        for parameter in live.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.rand_like(parameter) * 0.2)
    live.save_pretrained(tmp_path / "adapter")
    return open_merged(base, tmp_path / "adapter"), open_merged(base, tmp_path / "adapter")


def test_dora_norms_belong_to_one_base(views: tuple[Merged, Merged]) -> None:
    name, rows = "model.embed_tokens.weight", slice(0, 8)
    used, fresh = views
    stored = used.rows(name, rows)
    after, alone = used.with_base("nf4"), fresh.with_base("nf4")
    for view in (after, alone):
        view._base = Doubled(view._weights)
    np.testing.assert_array_equal(after.rows(name, rows), alone.rows(name, rows))
    assert not np.array_equal(stored, alone.rows(name, rows))
