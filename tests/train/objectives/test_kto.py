"""KTO: the loss is the paper's formula, with the KL estimate of the batch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from edgeft.data.encoded_rows import IGNORED
from edgeft.data.encoding import encode_verdicts
from edgeft.data.splits import validation_examples
from edgeft.errors import InputError
from edgeft.records import Manifest
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import encoder
from edgeft.train.options import TrainOptions
from edgeft.train.registry import METHODS
from helpers.preferences import log_probabilities

SLOW = pytest.mark.slow
IN_FAST = ("lora", "full")


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("verdicts") / "verdicts.jsonl"
    rows = [
        {"prompt": f"lamp {i}" + "!" * (i % 5), "completion": text, "label": text == "on"}
        for i in range(14)
        for text in ("on", "off, off")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def train(base: Path, data: Path, output: Path, method: str = "lora", **more: Any) -> Manifest:
    from edgeft.train.run import train as run

    settings: dict[str, Any] = {
        "steps": 6, "batch_size": 4, "micro_batch_size": 4, "validation_size": 4, "warmup": 0,
        "learning_rate": 3 * METHODS[method].learning_rate, "save_every": 0, "eval_every": 6,
        "compute_type": "fp32",
    }  # fmt: skip
    options = TrainOptions(base, data, output, **settings | more)
    return run(options, method=method, objective="kto")


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=() if name in IN_FAST else SLOW) for name in METHODS]
)
def test_every_method_learns_good_answers_and_not_bad_ones(
    method: str, tiny_base: Path, verdicts: Path, tmp_path: Path
) -> None:
    facts = train(tiny_base, verdicts, tmp_path / "result", method).facts
    losses = [loss for _, loss in facts["loss"]]
    assert losses[0] == pytest.approx(0.5, abs=1e-4), "r and z are 0 before the first step"
    assert losses[-1] < losses[0]
    assert facts["reward_margin"]["train"][-1][1] > 0
    assert facts["kl"]["train"][0][1] == pytest.approx(0, abs=1e-4)
    assert facts["labels"]["of"] == 24 and 8 <= facts["labels"]["desirable"] <= 14


def test_the_validation_loss_is_the_papers_formula(
    tiny_base: Path, verdicts: Path, tmp_path: Path
) -> None:
    import peft
    import transformers

    from edgeft.train.objectives.kto import mismatched

    beta, weights = 0.3, {"desirable_weight": 2.0, "undesirable_weight": 0.5}
    manifest = train(tiny_base, verdicts, tmp_path / "result", beta=beta, **weights)
    held_out = validation_examples(manifest.options)
    chat = ChatTemplate.from_folder(tiny_base)
    encoded, _ = encode_verdicts(held_out, chat, encoder(tiny_base), 512)
    own = list(encoded)
    others = [mismatched(row, own[i - 1]) for i, row in enumerate(own)]
    for row, other in zip(own, [own[-1], *own[:-1]], strict=True):
        mixed = mismatched(row, other)
        answers = [[i for i in r.labels if i != IGNORED] for r in (mixed, other)]
        assert answers[0] == answers[1]
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_base)
    start = [log_probabilities(base, rows) for rows in (own, others)]
    model = peft.PeftModel.from_pretrained(base, tmp_path / "result")
    end = [log_probabilities(model, rows) for rows in (own, others)]
    ratios, apart = (
        [after - before for after, before in zip(*sides, strict=True)]
        for sides in zip(end, start, strict=True)
    )
    z = max(0.0, sum(apart) / len(apart))
    losses = [
        weights["desirable_weight" if good else "undesirable_weight"]
        * (1 - 1 / (1 + math.exp(-beta * (r - z if good else z - r))))
        for r, good in zip(ratios, encoded.desirable, strict=True)
    ]
    loss = sum(losses) / len(losses)
    assert manifest.facts["validation_loss"][-1][1] == pytest.approx(loss, abs=3e-4)
    assert manifest.facts["kl"]["validation"][-1][1] == pytest.approx(z, abs=1e-3)


def test_a_micro_batch_of_one_has_no_other_answer(
    tiny_base: Path, verdicts: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="must hold two answers.*--micro-batch-size 2"):
        train(tiny_base, verdicts, tmp_path / "result", micro_batch_size=1)
