"""Every family that `edgeft models` says can be trained: data -> adapter -> GGUF, and it landed."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Family

from edgeft import models, store
from edgeft.files import read_json
from edgeft.merge.view import open_merged
from helpers.converting import convert
from helpers.families import TINY, card_of

CASES = {card_of(case).family: case for case in reversed(TINY) if card_of(case).trains}
CASES["olmo"] = "olmo-clipped"
"""family -> its first case of `families.TINY`; for OLMo the one with clipped and tied weights"""


def test_every_card_that_trains_is_trained() -> None:
    assert set(CASES) == {card.family for card in models.cards() if card.trains}


@pytest.mark.parametrize("family", CASES)
def test_train_and_convert(make: Family, family: str, tiny_chats: Path, tmp_path: Path) -> None:
    from edgeft.train.options import TrainOptions
    from edgeft.train.run import train

    base = make(CASES[family])[0]
    card = models.card_for(read_json(base / "config.json"))
    assert card.family == family
    train(
        TrainOptions(
            base=base, data=tiny_chats, output=tmp_path / "adapter", steps=2, batch_size=2,
            micro_batch_size=2, learning_rate=0.05, warmup=0, validation_size=0, save_every=0,
            compute_type="fp32",
        )
    )  # fmt: skip
    manifest = store.read_manifest(tmp_path / "adapter")
    assert manifest is not None
    assert manifest.facts["nf4"] == {
        "kind": "nf4", "block": 64, "double_quant": True, "compute_type": "float32", "threads": 1,
    }  # fmt: skip
    merged = open_merged(base, tmp_path / "adapter", "nf4")
    proof = convert(merged, tmp_path / "x.gguf", "f32").proof()
    wanted = {
        name
        for name, shape in merged.shapes.items()
        if card.in_4bit(name, shape) and name.split(".")[-2] in card.lora_targets
    }
    assert {name for name in merged.shapes if merged.adapted(name)} == wanted
    assert proof.tensors == len(wanted) > 7
    assert proof.beta == pytest.approx(1, abs=1e-3)
