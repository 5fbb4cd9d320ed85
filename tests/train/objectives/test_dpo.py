"""DPO: its loss is the papers' formula of the saved adapter and the base; every method trains it."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgeft.adapter.read import Weighted
from edgeft.data.encoding import encode_pairs
from edgeft.data.splits import validation_examples
from edgeft.errors import InputError
from edgeft.export.options import ExportOptions
from edgeft.export.pipeline import export
from edgeft.records import Manifest
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import encoder
from edgeft.train.options import TrainOptions
from edgeft.train.registry import METHODS, OBJECTIVES, check_objective
from edgeft.weights.checkpoint import Checkpoint
from helpers.preferences import log_probabilities, make_pairs

SLOW = pytest.mark.slow
IN_FAST = ("lora", "full")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl")


def train(
    method: str, base: Path, data: Path, output: Path, resume: bool = False, **more: Any
) -> Manifest:
    from edgeft.train.run import train as run

    settings: dict[str, Any] = {
        "steps": 4, "batch_size": 4, "micro_batch_size": 4, "validation_size": 4, "warmup": 0,
        "learning_rate": 3 * METHODS[method].learning_rate, "save_every": 0, "eval_every": 4,
        "compute_type": "fp32",
    }  # fmt: skip
    options = TrainOptions(base, data, output, **settings | more)
    return run(options, resume, method=method, objective="dpo")


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=() if name in IN_FAST else SLOW) for name in METHODS]
)
def test_every_method_prefers_the_better_answers(
    method: str, tiny_base: Path, pairs: Path, tmp_path: Path
) -> None:
    facts = train(method, tiny_base, pairs, tmp_path / "result").facts
    losses = [loss for _, loss in facts["loss"]]
    # Before the first step the model is its own reference.
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert losses[-1] < 0.9 * losses[0]
    assert facts["reward_margin"]["validation"][-1][1] > 0
    assert facts["reward_accuracy"]["validation"][-1][1] >= 0.75
    assert not list((tmp_path / "result").glob("**/ref")), "the reference is no part of the result"


def formula(loss_type: str, beta: float, smoothing: float, margin: float) -> float:
    """DPO (arXiv 2305.18290, equation 7), IPO (2310.12036, 17), robust DPO (2403.00409, 12)."""
    if loss_type == "ipo":
        return (margin - 1 / (2 * beta)) ** 2
    right, wrong = (math.log1p(math.exp(-sign * beta * margin)) for sign in (1, -1))
    return ((1 - smoothing) * right - smoothing * wrong) / (1 - 2 * smoothing)


@pytest.mark.parametrize(
    ("loss_type", "beta", "smoothing"), [("sigmoid", 0.3, 0), ("ipo", 0.5, 0), ("robust", 0.1, 0.2)]
)
def test_the_validation_loss_is_the_papers_formula(
    loss_type: str, beta: float, smoothing: float, tiny_base: Path, pairs: Path, tmp_path: Path
) -> None:
    import peft
    import transformers

    more = {"loss_type": loss_type, "beta": beta, "label_smoothing": smoothing}
    manifest = train("lora", tiny_base, pairs, tmp_path / "result", **more)
    chat = ChatTemplate.from_folder(tiny_base)
    held_out = validation_examples(manifest.options)
    encoded, _ = encode_pairs(held_out, chat, encoder(tiny_base), 512)
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_base)
    start = [log_probabilities(base, side) for side in (encoded.chosen, encoded.rejected)]
    model = peft.PeftModel.from_pretrained(base, tmp_path / "result")
    end = [log_probabilities(model, side) for side in (encoded.chosen, encoded.rejected)]
    lengths = [
        [sum(label != -100 for label in row.labels) if loss_type == "ipo" else 1 for row in side]
        for side in (encoded.chosen, encoded.rejected)
    ]
    ratios = [
        [(after - before) / count for after, before, count in zip(*columns, strict=True)]
        for columns in zip(end, start, lengths, strict=True)
    ]
    margins = [better - worse for better, worse in zip(*ratios, strict=True)]
    loss = sum(formula(loss_type, beta, smoothing, margin) for margin in margins) / len(margins)
    assert manifest.facts["validation_loss"][-1][1] == pytest.approx(loss, abs=2e-4)
    accuracy = sum(margin > 0 for margin in margins) / len(margins)
    if loss_type != "ipo":
        assert manifest.facts["reward_accuracy"]["validation"][-1][1] == accuracy


@pytest.mark.parametrize(
    "method", ["lora", pytest.param("full", marks=SLOW), pytest.param("pissa", marks=SLOW)]
)
def test_a_resumed_run_has_the_same_losses_and_result(
    method: str, tiny_base: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeft.train import loop

    output = tmp_path / "result"
    whole = train(method, tiny_base, pairs, output, save_every=2)
    shutil.rmtree(output)

    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "loss_curve", stop)  # after the last checkpoint, before the manifest
        with pytest.raises(KeyboardInterrupt):
            train(method, tiny_base, pairs, output, save_every=2)
    shutil.rmtree(tmp_path / "result.work" / "checkpoint-4")
    again = train(method, tiny_base, pairs, output, resume=True, save_every=2)
    assert again.facts["loss"] == whole.facts["loss"]
    assert again.facts["reward_margin"] == whole.facts["reward_margin"]
    assert again.files == whole.files


@pytest.mark.parametrize("method", ["lora", pytest.param("dora", marks=SLOW)])
def test_a_training_goes_on_from_an_adapter_as_its_reference(
    method: str, tiny_base: Path, pairs: Path, tmp_path: Path
) -> None:
    train(method, tiny_base, pairs, tmp_path / "first")
    facts = train(method, tiny_base, pairs, tmp_path / "second", adapter=tmp_path / "first").facts
    assert facts["loss"][0][1] == pytest.approx(math.log(2), abs=1e-4)
    assert facts["reward_margin"]["train"][0][1] == pytest.approx(0, abs=1e-4)


@pytest.mark.slow
def test_the_adapter_of_a_packed_base_stays_float32(
    tiny_base: Path, pairs: Path, tmp_path: Path
) -> None:
    """trl trains it in bfloat16, whose steps are too coarse for small rates."""
    facts = train("qlora", tiny_base, pairs, tmp_path / "result", keep_4bit=True).facts
    assert facts["loss"][0][1] == pytest.approx(math.log(2), abs=1e-4)
    types = {
        info.dtype
        for info in Checkpoint(tmp_path / "result" / "adapter_model.safetensors").tensors.values()
    }
    assert types == {"F32"}


def test_the_adapter_merges_and_exports(tiny_base: Path, pairs: Path, tmp_path: Path) -> None:
    manifest = train("lora", tiny_base, pairs, tmp_path / "result")
    assert manifest.options["objective"] == "dpo" and manifest.facts["validation_items"]
    (artifact,) = export(
        ExportOptions(
            out=tmp_path / "out", adapter=(Weighted(tmp_path / "result"),), base=str(tiny_base),
            quants=("f32",), threads=1,
        )
    )  # fmt: skip
    assert artifact.manifest.facts["parity"]["live"]["kl"] < 1e-4
    assert artifact.manifest.facts["proof"]["tensors"] == 14


def test_a_full_training_keeps_the_bases_settings(
    tiny_base: Path, pairs: Path, tmp_path: Path
) -> None:
    """trl gives a model the token ids of its tokenizer."""
    from edgeft.files import read_json

    train("full", tiny_base, pairs, tmp_path / "result", steps=1)
    before, after = (read_json(f / "config.json") for f in (tiny_base, tmp_path / "result"))
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert after[key] == before[key]
    names = (Checkpoint(f).tensors.keys() for f in (tiny_base, tmp_path / "result"))
    assert len({frozenset(keys) for keys in names}) == 1


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"packing": True}, "--packing is not for --objective dpo"),
        ({"lora_dropout": 0.1}, "--lora-dropout is not for --objective dpo"),
        ({"ship": "q4_0"}, "--ship is not for --objective dpo"),
        ({"loss_type": "simgoid"}, "no --loss-type 'simgoid'.*did you mean 'sigmoid'"),
        ({"label_smoothing": 0.1}, "sigmoid reads no --label-smoothing.*robust"),
        ({"loss_type": "exo_pair"}, "exo_pair needs --label-smoothing"),
        ({"label_smoothing": 0.5}, "no share below 0.5"),
        ({"beta": 0.0}, "--beta 0.0 is not positive"),
    ],
)
def test_what_the_loss_does_not_read_is_refused(
    more: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=problem):
        check_objective("dpo", TrainOptions(tmp_path, tmp_path, tmp_path, **more))


def test_an_option_of_preferences_is_refused_elsewhere(tmp_path: Path) -> None:
    for name in [name for name, row in OBJECTIVES.items() if "beta" not in row.options]:
        with pytest.raises(InputError, match=f"--beta is not for --objective {name}"):
            check_objective(name, TrainOptions(tmp_path, tmp_path, tmp_path, beta=0.2))


def test_the_head_takes_no_adapter(tiny_base: Path, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="multiplies by the head's weights.*--target-modules"):
        train("lora", tiny_base, pairs, tmp_path / "result", target_modules=("lm_head",))
