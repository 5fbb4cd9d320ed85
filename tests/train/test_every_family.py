"""Every family that `edgeft models` says can be trained: data -> adapter -> GGUF, and it landed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import Family

from edgeft import models, store
from edgeft.errors import InputError
from edgeft.files import read_json
from edgeft.merge.view import open_merged
from edgeft.runtimes.gguf import GGUFRuntime
from edgeft.runtimes.reference import ReferenceRuntime
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


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ia3", "bitfit", "freeze", "olora", "full"])
@pytest.mark.parametrize("family", CASES)
def test_every_family_has_the_weights_of_a_method(
    make: Family, family: str, method: str, tiny_chats: Path, tmp_path: Path
) -> None:
    """The GGUF has the logits of the live model, by peft or transformers."""
    from edgeft.train.options import TrainOptions
    from edgeft.train.registry import METHODS
    from edgeft.train.run import train

    base, result = make(CASES[family])[0], tmp_path / "result"
    options = TrainOptions(
        base=base, data=tiny_chats, output=result, steps=2, batch_size=2, micro_batch_size=2,
        learning_rate=10 * METHODS[method].learning_rate, warmup=0, validation_size=0,
        save_every=0, compute_type="fp32",
    )  # fmt: skip
    if (family, method) == ("olmo", "bitfit"):  # neither biases nor weights in its norms
        with pytest.raises(InputError, match="no norms to train"):
            train(options, method=method)
        return
    train(options, method=method)
    whole = METHODS[method].result == "base"
    base, adapters = (result, []) if whole else (base, [(result, 1.0)])
    convert(open_merged(base, None if whole else result), tmp_path / "x.gguf", "f32").proof()
    ids = [5, 40, 41, 42, 60, 61]
    live = ReferenceRuntime(base, adapters=adapters)
    with GGUFRuntime(tmp_path / "x.gguf", threads=1) as model:
        np.testing.assert_allclose(model.logits(ids), live.logits(ids), atol=0.05)
