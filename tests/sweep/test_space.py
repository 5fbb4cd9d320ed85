"""What is refused before a trial starts: what a training refuses, and measures that compare nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from edgeft.errors import InputError
from edgeft.sweep import space
from edgeft.sweep.options import Range
from helpers.preferences import make_pairs
from helpers.sweeping import sweep_options
from helpers.tiny import CHATML, make_base


def test_values_of_lists_and_ends_of_ranges_are_combined() -> None:
    values: dict[str, Any] = {"data": (Path("a"), Path("b")), "lora_r": Range(4, 8, whole=True),
                              "target_modules": (("q_proj", "v_proj"),)}  # fmt: skip
    assert list(space.combinations(values)) == [
        {"data": data, "lora_r": rank, "target_modules": "q_proj,v_proj"}
        for data in ("a", "b")
        for rank in (4, 8)
    ]
    assert space.size(values) == float("inf") and space.size({"lora_r": (1, 2, 3)}) == 3


def test_a_trial_has_its_values_typed(tiny_base: Path, tiny_chats: Path, tmp_path: Path) -> None:
    options = sweep_options(
        tiny_base, tiny_chats, tmp_path, space={"data": (tiny_chats,), "method": ("full",)}
    )
    run = space.resolve(options, {"data": str(tiny_chats), "method": "full"}, tmp_path / "trial")
    assert run.method == "full" and run.options.data == tiny_chats
    assert run.options.learning_rate == 5e-5, "the method's own"


def test_what_training_refuses_is_refused_with_the_values(
    tiny_base: Path, tiny_chats: Path, tmp_path: Path
) -> None:
    options = sweep_options(tiny_base, tiny_chats, tmp_path / "out")
    for values, message in (
        ({"method": ("lora", "full"), "lora_r": (16, 8)}, "method full, lora-r 8: --lora-r is not"),
        ({"method": ("lora", "lorra")}, "method lorra: no training method 'lorra' .*'lora'"),
        ({"micro_batch_size": (3, 2)}, "micro-batch-size 3: --batch-size 4 is no multiple"),
        ({"base": (str(tiny_base), "nowhere")}, "base nowhere: no such base model"),
        ({"optimizer": ("adam",)}, "optimizer adam: "),
        ({"ship": ("q4_0", "gptq-q4_0")}, "ship gptq-q4_0: --ship gptq-q4_0 begins with a file"),
        ({"ship_text": (Path("auto"),)}, "ship-text auto: only `edgeft train` writes the text"),
        ({"data": (tmp_path / "none.jsonl",)}, "data .*none.jsonl: "),
        ({"validation_size": (0,)}, "there is no validation to choose by"),
    ):
        with pytest.raises(InputError, match=message):
            space.check(dataclasses.replace(options, space=values))
    assert not options.output.exists()


def test_losses_on_other_validation_tokens_are_not_compared(
    tiny_base: Path, tiny_chats: Path, tmp_path: Path
) -> None:
    rows = tiny_chats.read_text().splitlines()
    (tmp_path / "half.jsonl").write_text("\n".join(rows[:20]))
    other = make_base(tmp_path / "other", seed=1)
    spaced = make_base(tmp_path / "spaced")
    config = json.loads((spaced / "tokenizer_config.json").read_text())
    config["chat_template"] = CHATML.replace("<|im_start|>assistant", "<|im_start|> assistant")
    (spaced / "tokenizer_config.json").write_text(json.dumps(config))
    options = sweep_options(tiny_base, tiny_chats, tmp_path / "out")
    data = (tiny_chats, tmp_path / "half.jsonl")
    for values, name in (
        ({"data": data}, "data"),
        ({"seed": (0, 1)}, "seed"),
        ({"cutoff_length": (512, 8)}, "cutoff-length"),
        ({"base": (str(tiny_base), str(spaced))}, "base"),
    ):
        with pytest.raises(InputError, match=f"^{name}: the trials would compute"):
            space.check(dataclasses.replace(options, space=values))
    fixed = {**options.run, "validation_data": tmp_path / "half.jsonl"}
    parents = space.check(dataclasses.replace(options, run=fixed, space={"data": data}))
    assert set(parents) == {str(tiny_base), *map(str, data)}
    bases = {"base": (str(tiny_base), str(other))}
    assert str(other) in space.check(dataclasses.replace(options, space=bases))


def test_plain_texts_are_compared_as_they_are_trained(
    tiny_base: Path, tiny_chats: Path, tmp_path: Path
) -> None:
    for name in ("texts", "other"):
        rows = [json.dumps({"text": f"{name} {i} of the river and the boat"}) for i in range(40)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    texts, other = tmp_path / "texts.jsonl", tmp_path / "other.jsonl"
    options = sweep_options(tiny_base, texts, tmp_path / "out", run={"objective": "pretrain"})
    assert space.check(options).keys() == {str(tiny_base), str(texts)}
    for values, name in (
        ({"cutoff_length": (512, 64)}, "cutoff-length"),
        ({"data": (texts, other)}, "data"),
    ):
        with pytest.raises(InputError, match=f"^{name}: the trials would compute"):
            space.check(dataclasses.replace(options, space=values))


def test_losses_by_another_formula_are_not_compared(tiny_base: Path, tmp_path: Path) -> None:
    pairs = make_pairs(tmp_path / "pairs.jsonl")
    options = sweep_options(tiny_base, pairs, tmp_path / "out", run={"objective": "dpo"})
    assert space.check(options).keys() == {str(tiny_base), str(pairs)}
    for values, name in (
        ({"beta": (0.1, 0.2)}, "beta"),
        ({"loss_type": ("sigmoid", "ipo")}, "loss-type"),
    ):
        with pytest.raises(InputError, match=f"^{name}: the trials would compute"):
            space.check(dataclasses.replace(options, space=values))
