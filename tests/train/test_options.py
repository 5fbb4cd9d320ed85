"""Options of a training that contradict each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgeft.errors import InputError
from edgeft.train.options import TrainOptions
from edgeft.train.registry import check_options

FILES = (Path("base"), Path("chats.jsonl"), Path("adapter"))


@pytest.mark.unit
@pytest.mark.parametrize(
    "options, why",
    [
        ({"ship": "q4_0", "lora_dropout": 0.1}, "--ship and --lora-dropout do not go together"),
        ({"ship": "q4_0", "use_dora": True}, "--ship and --use-dora do not go together"),
        ({"ship": "q4_0", "keep_4bit": True}, "--ship and --keep-4bit do not go together"),
        ({"ship": "q4_0", "add_tokens": ("<a>",)}, "--ship and --add-tokens do not go together"),
        ({"ship": "q4_0", "offload_weights": True}, "--offload-weights do not go together"),
        ({"ship": "q4_0", "compute_type": "bf16"}, "--ship computes in float32"),
        ({"ship": "q4_0", "keep_best": True}, "do not compare .*--ship-steps 1"),
        ({"ship": "q4_0", "early_stopping": 2, "ship_steps": 8}, "do not compare"),
        ({"ship_steps": 8}, "--ship-steps needs --ship"),
        ({"ship": "q4_0", "ship_steps": 0}, "--ship-steps needs --ship and is above 0"),
    ],
)
def test_what_ship_does_not_compute_is_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=why):
        TrainOptions(*FILES, **options)


@pytest.mark.unit
@pytest.mark.parametrize("method", ["full", "dora", "pissa", "ia3"])
def test_ship_is_for_plain_lora(method: str) -> None:
    with pytest.raises(InputError, match=f"--ship is not for --method {method} .*lora, rslora"):
        check_options(method, TrainOptions(*FILES, ship="q4_0"))


@pytest.mark.unit
def test_ship_takes_the_last_steps() -> None:
    def first(**options: Any) -> int:
        return TrainOptions(*FILES, ship="q4_0", **options).first_ship_step(10)

    assert first() == 7, "a quarter, rounded up"
    assert first(adapter=Path("adapter")) == 0
    assert first(ship_steps=0.5) == 5 and first(ship_steps=1) == 0
    assert first(ship_steps=3) == 7 and first(ship_steps=30) == 0
    assert first(ship_steps=1, keep_best=True, early_stopping=3) == 0
