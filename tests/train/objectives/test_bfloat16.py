"""Every objective trains where the base computes in bfloat16, as `--compute-type auto` chooses on newer machines."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from edgeft.train.options import TrainOptions
from edgeft.train.registry import OBJECTIVES
from helpers.preferences import make_pairs

PREFERENCES = ("dpo", "orpo", "cpo", "simpo", "reward")
REWARDED = ("grpo", "rloo", "ppo")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    pairs = make_pairs(folder / "pairs.jsonl")
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    verdicts = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in rows
        for side in ("chosen", "rejected")
    ]
    (folder / "verdicts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in verdicts))
    return {**dict.fromkeys(PREFERENCES, pairs), "kto": folder / "verdicts.jsonl"}


@pytest.mark.slow
@pytest.mark.parametrize("objective", sorted(set(OBJECTIVES) - {"pretrain"}))
@pytest.mark.parametrize("more", [{}, {"keep_4bit": True}], ids=["lora", "qlora in 4 bits"])
def test_it_trains(
    objective: str, more: dict[str, Any], data: dict[str, Path], tiny_base: Path, tiny_chats: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    from edgeft.train.run import train

    if objective in REWARDED:
        more = more | {"reward": ("length:4",), "generations": 2, "max_new_tokens": 4}
    options = TrainOptions(
        tiny_base, data.get(objective, tiny_chats), tmp_path / "result", steps=2, batch_size=4,
        micro_batch_size=4, validation_size=0, save_every=0, compute_type="bf16", threads="1", **more,
    )  # fmt: skip
    facts = train(
        options, method="qlora" if "keep_4bit" in more else "lora", objective=objective
    ).facts
    assert facts["steps"] == 2 and all(math.isfinite(loss) for _, loss in facts["loss"])
