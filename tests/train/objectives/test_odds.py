"""ORPO, CPO and SimPO: the losses are the papers' formulas of the saved adapter."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from edgeft.data.encoding import encode_pairs
from edgeft.data.splits import validation_examples
from edgeft.records import Manifest
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import encoder
from edgeft.train.options import TrainOptions
from edgeft.train.registry import METHODS, OBJECTIVES
from helpers.preferences import log_probabilities, make_pairs

SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl")


def train(objective: str, base: Path, data: Path, output: Path, **more: Any) -> Manifest:
    from edgeft.train.run import train as run

    settings: dict[str, Any] = {
        "steps": 4, "batch_size": 4, "micro_batch_size": 4, "validation_size": 4, "warmup": 0,
        "learning_rate": 3e-3, "save_every": 0, "eval_every": 4, "compute_type": "fp32",
    }  # fmt: skip
    method = more.pop("method", "lora")
    options = TrainOptions(base, data, output, **settings | more)
    return run(options, method=method, objective=objective)


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def orpo(better: float, worse: float, beta: float) -> float:
    """Equation 4 to 6 of arXiv 2403.07691, from mean log-probabilities of a token; without SFT's part."""
    odds = [p - math.log1p(-math.exp(p)) for p in (better, worse)]
    return -beta * log_sigmoid(odds[0] - odds[1])


def cpo(better: float, worse: float, beta: float) -> float:
    """Equation 3 of arXiv 2401.08417, from summed log-probabilities; without SFT's part."""
    return -log_sigmoid(beta * (better - worse))


def simpo(better: float, worse: float, beta: float) -> float:
    """Equation 6 of arXiv 2405.14734, from mean log-probabilities; gamma is 0.7."""
    return -log_sigmoid(beta * (better - worse) - 0.7)


@pytest.mark.parametrize(
    ("objective", "formula", "beta", "mean", "learns"),
    [
        ("orpo", orpo, 0.2, True, True),
        ("cpo", cpo, 0.3, False, True),
        ("simpo", simpo, 2.5, True, False),
    ],
)
def test_the_validation_loss_is_the_papers_formula(
    objective: str, formula: Any, beta: float, mean: bool, learns: bool, tiny_base: Path,
    pairs: Path, tmp_path: Path,
) -> None:  # fmt: skip
    import peft
    import transformers

    more = {"simpo_gamma": 0.7} if objective == "simpo" else {}
    manifest = train(objective, tiny_base, pairs, tmp_path / "result", beta=beta, **more)
    held_out = validation_examples(manifest.options)
    chat = ChatTemplate.from_folder(tiny_base)
    encoded, _ = encode_pairs(held_out, chat, encoder(tiny_base), 512)
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_base)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "result")
    sums, counts = [], []
    for side in (encoded.chosen, encoded.rejected):
        sums.append(log_probabilities(model, side))
        counts.append([sum(label != -100 for label in row.labels) for row in side])
    values = [
        [p / count if mean else p for p, count in zip(*columns, strict=True)]
        for columns in zip(sums, counts, strict=True)
    ]
    losses = [formula(better, worse, beta) for better, worse in zip(*values, strict=True)]
    loss = sum(losses) / len(losses)
    loss += -sum(sums[0]) / sum(counts[0]) if learns else 0
    assert manifest.facts["validation_loss"][-1][1] == pytest.approx(loss, abs=3e-4)
    accuracy = sum(better > worse for better, worse in zip(*values, strict=True)) / len(losses)
    assert manifest.facts["reward_accuracy"]["validation"][-1][1] == pytest.approx(accuracy)


@pytest.mark.parametrize("objective", ["orpo", "cpo", "simpo"])
def test_micro_batches_change_nothing(
    objective: str, tiny_base: Path, pairs: Path, tmp_path: Path
) -> None:
    """The same answers in every pair: SFT's part is then a mean over tokens in any micro-batch."""
    same = tmp_path / "same.jsonl"
    same.write_text('{"prompt": "lamp", "chosen": "on", "rejected": "off"}\n' * 12)
    curves = [
        train(objective, tiny_base, same, tmp_path / f"{size}", micro_batch_size=size).facts["loss"]
        for size in (4, 2)
    ]
    for (_, whole), (_, halves) in zip(*curves, strict=True):
        assert halves == pytest.approx(whole, abs=2e-4)
    assert curves[0][-1][1] < curves[0][0][1]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("objective", ["orpo", "simpo"])
def test_every_method_prefers_the_better_answers(
    objective: str, method: str, tiny_base: Path, pairs: Path, tmp_path: Path
) -> None:
    rate = 3 * METHODS[method].learning_rate
    facts = train(
        objective, tiny_base, pairs, tmp_path / "result", method=method, learning_rate=rate
    ).facts
    assert facts["loss"][-1][1] < facts["loss"][0][1]
    margins = facts["reward_margin"]["train"]
    assert margins[-1][1] > margins[0][1]
    assert OBJECTIVES[objective].extra == "align"
