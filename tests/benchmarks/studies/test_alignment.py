"""The study of alignment: its data, its figures against an oracle, its commands and its table."""

from __future__ import annotations

import argparse
import json
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from edgeft.benchmarks.studies import alignment
from edgeft.benchmarks.studies.aligned_answers import (
    Answer,
    kl,
    mean,
    pair_log_probabilities,
    sampled,
    share,
    worse,
)
from edgeft.benchmarks.suites import load_suite
from edgeft.data.layouts import LAYOUTS
from edgeft.data.rows import load_examples
from edgeft.runtimes.protocol import Runtime, open_runtime
from edgeft.train.options import TrainOptions


def chat(answer: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "assistant", "content": json.dumps(answer)}]}


@pytest.mark.unit
def test_a_worse_answer_differs_in_one_field() -> None:
    others: list[dict[str, Any]] = [{"action": "on", "device": "lamp"}, {"action": "off"}]
    for seed in range(8):
        changed = json.loads(worse(chat(others[0]), others, random.Random(seed)))
        assert changed == {"action": "off", "device": "lamp"}, "no other lamp"
    with pytest.raises(ValueError, match="nothing to change"):
        worse(chat({"room": "hall"}), others, random.Random(0))


@pytest.mark.unit
def test_the_rows_of_sft_and_of_preferences_are_apart(tmp_path: Path) -> None:
    suite = load_suite("smart_home")
    alignment.write_data(suite, tmp_path, seed=0, items=50)
    sft = {example.prompt for example in load_examples(tmp_path / "sft.jsonl")}
    pairs = load_examples(tmp_path / "pairs.jsonl", layout="pairs")
    verdicts = load_examples(tmp_path / "verdicts.jsonl", layout="verdicts")
    prompts = load_examples(tmp_path / "prompts.jsonl", layout="prompts")
    test = {example.prompt for example in load_examples(suite.test)}
    assert (
        len(pairs) == len(prompts) == 500 and [v.desirable for v in verdicts] == [True, False] * 500
    )
    assert not sft & {pair.prompt for pair in pairs}
    held_out = alignment.held_out(tmp_path / "held_out.jsonl")
    assert len(held_out) == 50
    assert all(
        better.prompt == other.prompt and better.prompt in test for better, other in held_out
    )
    for better, other in held_out:
        a, b = json.loads(better.answer), json.loads(other.answer)
        assert a.keys() == b.keys() and sum(a[name] != b[name] for name in a) == 1


def test_log_probabilities_are_those_of_transformers(tiny_base: Path, tmp_path: Path) -> None:
    import transformers

    from edgeft.data.encoding import encode_pairs
    from helpers.preferences import log_probabilities, make_pairs

    data = make_pairs(tmp_path / "pairs.jsonl")
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_base)
    with open_runtime(tiny_base) as runtime:
        ours = pair_log_probabilities(runtime, alignment.held_out(data)[:4])
        examples = load_examples(data, layout="pairs")[:4]
        encoded, _ = encode_pairs(examples, runtime.chat, runtime.encode, 512)
        (answer,) = sampled(runtime, [examples[0]], max_tokens=3)
    sides = [log_probabilities(model, side) for side in (encoded.chosen, encoded.rejected)]
    assert np.array(ours).T == pytest.approx(np.array(sides), abs=1e-3)
    assert answer.prompt == tuple(runtime.encode(runtime.chat.render(examples[0].prompt)))


@pytest.mark.unit
def test_kl_is_the_mean_over_the_answers_tokens_and_its_end() -> None:
    def model(*shares: float) -> Runtime:
        """Its rows have the probability `shares` of the first of two tokens."""
        rows = np.log(np.array([[share, 1 - share] for share in shares], np.float32)) + 3
        asked: list[list[int]] = []

        def logits(ids: list[int], last: int) -> Any:
            asked.append(ids)
            return rows[:last]

        return cast(Runtime, SimpleNamespace(logits=logits, asked=asked))

    ours, theirs = model(0.75, 0.9), model(0.5, 0.5)
    (value,) = kl(ours, theirs, [Answer((7, 8), (1,), "x")])
    each = [p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p)) for p in (0.75, 0.9)]
    assert value == pytest.approx(sum(each) / 2, abs=1e-6)
    assert cast(Any, ours).asked == [[7, 8, 1]]


@pytest.mark.unit
def test_intervals() -> None:
    assert mean([1.0, 2.0, 3.0]) == pytest.approx(
        (2, 2 - 1.96 / math.sqrt(3), 2 + 1.96 / math.sqrt(3))
    )
    assert mean([0.5]) == (0.5, 0.5, 0.5)
    value, low, high = share([True] * 8 + [False] * 2)
    assert value == 0.8 and (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)


@pytest.mark.unit
def test_the_commands_of_a_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []

    def run(command: list[str]) -> Any:
        ran.append(command)
        return SimpleNamespace(anonymous=5)

    monkeypatch.setattr(alignment, "run", run)
    options = argparse.Namespace(
        out=tmp_path, base="b", seed=3, threads=1, sft_steps=9, steps=None, learning_rate=None,
        reward="fields", generations=4,
    )  # fmt: skip
    for objective in (alignment.SFT, *alignment.RECIPES):
        alignment.Cell(objective, "lora", options).train()
    first, *others = (" ".join(command) for command in ran)
    assert f"--data {tmp_path}/sft.jsonl --steps 9" in first and "--adapter" not in first
    for command, (objective, recipe) in zip(others, alignment.RECIPES.items(), strict=True):
        assert f"--objective {objective} --adapter {tmp_path}/lora/sft/adapter" in command
        assert f"--data {tmp_path}/{recipe.data}.jsonl --steps {recipe.steps}" in command
        assert ("--reward fields --generations 4" in command) == (recipe.data == "prompts")
        assert LAYOUTS[objective] == recipe.data
    assert json.loads((tmp_path / "lora/dpo/train.json").read_text()) == {"anonymous": 5}
    fields = {f"--{name.replace('_', '-')}" for name in TrainOptions.__dataclass_fields__}
    words = {word for command in ran for word in command if word.startswith("--")}
    assert words <= fields | {"--method", "--objective"}


@pytest.mark.unit
def test_the_table_has_the_change_from_sft() -> None:
    start: dict[str, list[Any]] = {"pairs": [[-2.0, -3.0]] * 4, "rewards": [0.5] * 4, "kl": []}
    end: dict[str, list[Any]] = {
        "pairs": [[-1.0, -4.0]] * 3 + [[-3.0, -3.5]], "rewards": [1.0] * 4, "kl": [0.1, 0.3, 0.1, 0.3],
    }  # fmt: skip
    figures = alignment.difference_figures(start, end, [1, 0, 0, 0], [1, 1, 0.5, 0])
    assert figures["pair_accuracy"][0] == 0.75 and figures["pair_margin"][0] == pytest.approx(1.375)
    assert figures["chosen_gain"][0] == pytest.approx(0.5)
    assert figures["reward_difference"] == (0.5, 0.5, 0.5)
    assert figures["kl"][0] == pytest.approx(0.2) and figures["task_difference"][0] == 0.25
    cost = {"method": "lora", "steps": 5, "seconds": 90.0, "anonymous_mb": 812.4}
    rows = [
        cost | {"objective": "sft", "task": share([True, False])},
        cost | figures | {"objective": "dpo", "perplexity_ratio": 1.01},
        cost | alignment.reward_figures([(1.0, 0.5), (0.0, 1.0)]) | {"objective": "reward"},
    ]
    lines = alignment.table(rows).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert "75.0 (30.1 to 95.4)" in lines[3] and "+0.500 (+0.500 to +0.500)" in lines[3]
    assert "x 1.010" in lines[3] and "812 MB" in lines[3] and "1.5" in lines[3]
    assert "50.0" in lines[2] and "50.0 (9.5 to 90.5)" in lines[4]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for all objectives, so that SFT is trained once."""
    folder = tmp_path_factory.mktemp("alignment")
    prompts = (
        example.prompt[-1].content for example in load_examples(load_suite("smart_home").train)
    )
    (folder / "text.txt").write_text("\n".join(prompts))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("objective", alignment.RECIPES)
def test_every_objective_has_its_effect_on_the_embedded_model(
    objective: str, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Five to twenty minutes each."""
    alignment.main(
        ["--objective", objective, "--items", "80", "--text", str(study / "text.txt"),
         "--out", str(study / "out")]
    )  # fmt: skip
    row = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"][-1]
    assert row["objective"] == objective and row["seconds"] > 0
    if alignment.RECIPES[objective].data == "prompts":
        assert row["reward_difference"][0] > 0 and row["kl"][0] < 0.5
    else:
        assert row["pair_accuracy"][1] > 0.5, "the interval is above chance"
        assert row["pair_margin"][1] > 0
        assert objective == "reward" or row["kl"][0] < 0.2
