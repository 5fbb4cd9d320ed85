"""The training loop: resume, seeds, early stopping, the best checkpoint, answers, reporters, NEFTune."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from edgeft import store
from edgeft.benchmarks.quality.scorers import tool_call
from edgeft.data.rows import load_examples
from edgeft.errors import AdapterError, InputError, MissingExtra
from edgeft.records import Example, Manifest, Message, ToolCall
from edgeft.tokenizer.tool_calls import HERMES
from edgeft.train.answers import Answering, AnswerItems
from edgeft.train.options import TrainOptions
from edgeft.train.protocol import Evaluation
from edgeft.train.registry import METHODS
from edgeft.train.run import train
from helpers.interrupting import interrupted_at
from helpers.tiny import make_base

RUN: dict[str, Any] = {
    "steps": 6, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 5e-3, "save_every": 2,
    "eval_every": 2, "compute_type": "fp32", "validation_size": 4,
}  # fmt: skip
STILL: dict[str, Any] = {"learning_rate": 1e-30, "warmup": 0.0, "scheduler": "constant"}
"""training that changes no loss"""
RESUMED = [
    ("qlora", "adamw"), ("full", "adafactor"),
    *(pytest.param(method, optimizer, marks=pytest.mark.slow)
      for method, optimizer in (("qlora", "lion"), ("lora", "adamw"), ("lora", "adafactor"),
                                ("full", "adamw"), ("freeze", "muon"), ("dora", "adamw"))),
]  # fmt: skip
"""(method, optimizer) of runs that are interrupted"""


@pytest.fixture
def run(tiny_base: Path, tiny_chats: Path, tmp_path: Path) -> Callable[..., Manifest]:
    """A short training into `tmp_path / name`."""

    def go(name: str = "adapter", **changes: Any) -> Manifest:
        more = {
            key: changes.pop(key)
            for key in ("method", "items", "resume", "watch")
            if key in changes
        }
        options = {"base": tiny_base, "data": tiny_chats} | RUN | changes
        return train(TrainOptions(output=tmp_path / name, **options), **more)

    return go


def weights(manifest: Manifest) -> dict[str, str]:
    return {name: file.sha256 for name, file in manifest.files.items() if "safetensors" in name}


@pytest.mark.parametrize(("method", "optimizer"), RESUMED)
def test_a_resumed_run_has_the_losses_and_the_bytes_of_an_uninterrupted_one(
    run: Callable[..., Manifest], method: str, optimizer: str
) -> None:
    chosen = {"method": method, "optimizer": optimizer, "lora_dropout": 0.1}
    if METHODS[method].result == "base" or method == "freeze":
        del chosen["lora_dropout"]
    whole = run("whole", **chosen)
    with interrupted_at(5):
        run("cut", **chosen)
    seen: list[Evaluation] = []
    resumed = run("cut", resume=True, watch=seen.append, **chosen)
    assert [(e.step, e.last) for e in seen] == [(2, False), (4, False), (6, True)]
    assert [[e.step, round(e.value, 4)] for e in seen] == resumed.facts["validation_loss"]
    assert resumed.facts["loss"] == whole.facts["loss"] and len(whole.facts["loss"]) == 6
    assert resumed.facts["validation_loss"] == whole.facts["validation_loss"]
    assert weights(resumed) == weights(whole)


def test_the_same_seed_gives_the_same_bytes(run: Callable[..., Manifest]) -> None:
    first, again = (run(name, save_every=0, lora_dropout=0.1) for name in ("first", "again"))
    other = run("other", save_every=0, lora_dropout=0.1, seed=1)
    assert weights(first) == weights(again) != weights(other)


def test_training_stops_when_the_validation_loss_no_longer_falls_and_keeps_the_best(
    run: Callable[..., Manifest],
) -> None:
    """A learning rate that changes weights and no loss: the first evaluation is the best."""
    still = STILL | {"eval_every": 1}
    manifest = run(early_stopping=2, keep_best=True, **still)
    assert [step for step, _ in manifest.facts["validation_loss"]] == [1, 2, 3]
    assert manifest.facts["steps"] == 3 and manifest.facts["kept_step"] == 1
    short = run("short", **still | {"steps": 1})
    assert weights(short) == weights(manifest), "the weights are those of the best step"
    last = run("last", early_stopping=2, **still)
    assert weights(last) != weights(manifest) and "kept_step" not in last.facts


@pytest.mark.slow
def test_early_stopping_counts_over_an_interruption(run: Callable[..., Manifest]) -> None:
    chosen = STILL | {"early_stopping": 3, "eval_every": 1, "save_every": 1}
    with interrupted_at(3):
        run("cut", **chosen)
    assert run("cut", resume=True, **chosen).facts["steps"] == 4


def test_items_are_answered_at_every_evaluation(
    run: Callable[..., Manifest], tiny_chats: Path, tiny_base: Path
) -> None:
    asked: list[tuple[str, str]] = []

    def score(reply: str, reference: str) -> float:
        asked.append((reply, reference))
        return float(len(asked) % 2)

    examples = tuple(load_examples(tiny_chats)[:4])
    plain = run("plain")
    seen: list[Evaluation] = []
    items = AnswerItems(examples, score, "mine", max_tokens=3)
    manifest = run("asked", items=items, watch=seen.append)
    accuracy = manifest.facts["accuracy"]
    steps = [step for step, _ in manifest.facts["validation_loss"]]
    assert [step for step, _ in accuracy["curve"]] == steps == [2, 4, 6]
    assert accuracy["scorer"] == "mine"
    watched = [[e.step, round(e.value, 4)] for e in seen if e.measure == "accuracy"]
    assert watched == accuracy["curve"] and len(seen) == 6
    # An answer that is cut off scores nothing, so that the scorer sees ended ones only.
    assert len(asked) <= 12 and all(
        reference in {e.answer for e in examples} for _, reference in asked
    )
    assert weights(manifest) == weights(plain), "answering changes no weight"


def test_answers_in_a_batch_are_those_of_the_runtime(tiny_base: Path, tiny_chats: Path) -> None:
    import transformers

    from edgeft.records import Limits
    from edgeft.runtimes.reference import ReferenceRuntime

    examples = tuple(load_examples(tiny_chats)[:3])
    items = AnswerItems(examples, lambda reply, reference: 1.0, "any", max_tokens=6)
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_base, dtype="float32").eval()
    answering = Answering(items, tiny_base, batch_size=2)
    replies = answering.replies(model)
    with ReferenceRuntime(tiny_base) as runtime:
        prompts = [runtime.encode(runtime.chat.render(e.prompt)) for e in examples]
        expected = runtime.replies(prompts, Limits(max_tokens=6))
    # The runtime leaves out a character whose bytes are not all there yet.
    assert [(text.rstrip("\ufffd"), stopped) for text, stopped in replies] == [
        (reply.text.rstrip("\ufffd"), reply.stopped) for reply in expected
    ]
    ended = sum(stopped for _, stopped in replies)
    assert answering.accuracy(model) == pytest.approx(ended / 3)


def test_neftune_changes_what_is_learned_but_no_validation_loss_of_the_first_step(
    run: Callable[..., Manifest],
) -> None:
    """The noise is on the embeddings in training only: with rate 0 the validation losses agree."""
    plain, noisy = (
        run(name, save_every=0, neftune_alpha=alpha, **STILL)
        for name, alpha in (("plain", 0.0), ("noisy", 5.0))
    )
    assert noisy.facts["validation_loss"] == plain.facts["validation_loss"]
    assert noisy.facts["loss"] != plain.facts["loss"]


def test_losses_are_reported_by_transformers_name(
    run: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import transformers
    from transformers.integrations import integration_utils

    from edgeft.train import reporters

    names = set(integration_utils.INTEGRATION_TO_CALLBACK)
    assert set(reporters.REPORTERS) == names
    seen: list[dict[str, float]] = []

    class Recorder(transformers.TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any, **kwargs: Any) -> None:
            seen.append(dict(logs))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "trackio", Recorder)
    monkeypatch.setitem(reporters.REPORTERS, "trackio", "json")
    run(report_to=("trackio",), save_every=0)
    assert sum("loss" in logs for logs in seen) == 6
    assert sum("eval_loss" in logs for logs in seen) == 3
    with pytest.raises(InputError, match="did you mean 'wandb'"):
        run("other", report_to=("wand",))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="wandb, which is not installed .pip install wandb"):
        run("other", report_to=("wandb",))


@pytest.mark.slow
def test_tensorboard_writes_beside_the_adapter(
    run: Callable[..., Manifest], tmp_path: Path
) -> None:
    if importlib.util.find_spec("tensorboard") is None:
        pytest.skip("tensorboard is not installed")
    run(report_to=("tensorboard",), save_every=0)
    assert list((tmp_path / "adapter.logs").glob("events.out.tfevents.*"))


def test_packed_rows_are_trained_and_counted(run: Callable[..., Manifest]) -> None:
    manifest = run(packing=True, cutoff_length=128, steps=2)
    packed = manifest.facts["packed"]
    assert packed["examples"] == 36 and packed["rows"] == manifest.facts["examples"]["train"] < 18
    assert manifest.options["packing"] is True


def test_an_adapter_is_trained_on_from_its_weights(
    run: Callable[..., Manifest], tmp_path: Path
) -> None:
    """With a learning rate of nothing the continued adapter is the first one."""
    first = run("first")
    same = run("same", adapter=tmp_path / "first", **STILL | {"steps": 1, "eval_every": 1})
    assert weights(same) == weights(first)
    assert same.parents["adapter"] == store.identity(tmp_path / "first")
    assert same.facts["validation_loss"][0][1] == first.facts["validation_loss"][-1][1]
    further = run("further", adapter=tmp_path / "first")
    assert further.facts["loss"][0][1] < first.facts["loss"][0][1]
    with pytest.raises(InputError, match="has rank 16, more than 8 .--lora-r 16"):
        run("other", adapter=tmp_path / "first", lora_r=8)
    with pytest.raises(InputError, match="only the adapter has .*down_proj.lora_A"):
        run("other", adapter=tmp_path / "first", target_modules=("q_proj",))
    with pytest.raises(AdapterError, match="trained on another base"):
        run("other", adapter=tmp_path / "first", base=make_base(tmp_path / "base", seed=1))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_larger_rank_begins_with_the_same_change(
    run: Callable[..., Manifest], tmp_path: Path, use_rslora: bool
) -> None:
    first = run("first", use_rslora=use_rslora)
    more: dict[str, Any] = {"lora_r": 24, "lora_alpha": 12, "use_rslora": use_rslora}
    wide = run("wide", adapter=tmp_path / "first", **STILL | {"steps": 1, "eval_every": 1}, **more)
    config = json.loads((tmp_path / "wide" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (24, 12)
    last = first.facts["validation_loss"][-1][1]
    assert wide.facts["validation_loss"][0][1] == pytest.approx(last, rel=1e-4)
    run("further", adapter=tmp_path / "first", **more)
    before, same, after = (
        load_file(tmp_path / name / "adapter_model.safetensors")
        for name in ("first", "wide", "further")
    )
    root = (lambda rank: rank**0.5) if use_rslora else float
    for name in [name for name in before if "lora_B" in name]:
        inner = name.replace("lora_B", "lora_A")
        change = 32 / root(16) * before[name] @ before[inner]
        np.testing.assert_allclose(12 / root(24) * same[name] @ same[inner], change, atol=1e-6)
        assert np.abs(same[name][:, 16:]).max() < 1e-20
        assert np.abs(after[name][:, 16:]).max() > 1e-4


def test_every_further_rank_can_learn() -> None:
    """peft draws A of a linear layer and B of an embedding, and leaves the other zero."""
    import torch

    from edgeft.train.continued import _widened

    for kind, drawn in (("lora_{}.weight", "A"), ("lora_embedding_{}", "B")):
        fresh = {"A": torch.zeros(4, 9), "B": torch.zeros(7, 4)}
        fresh[drawn].normal_()
        kept = {"A": torch.randn(2, 9), "B": torch.randn(7, 2).to(torch.bfloat16)}
        wide = {
            part: _widened(kind.format(part), kept[part], fresh[part], 1.3) for part in ("A", "B")
        }
        change = 1.3 * kept["B"].float() @ kept["A"]
        torch.testing.assert_close(wide["B"] @ wide["A"], change, rtol=1e-6, atol=1e-6)
        further = {"A": wide["A"][2:], "B": wide["B"][:, 2:]}
        assert further[drawn].all(), "a matrix of zeros would never get a gradient beside zeros"


@pytest.mark.parametrize(("options", "problem"), [
    ({"early_stopping": 2, "validation_size": 0}, "--early-stopping needs a validation loss"),
    ({"keep_best": True, "validation_size": 0}, "--keep-best needs a validation loss"),
    ({"keep_best": True, "save_every": 0}, "--keep-best needs checkpoints"),
    ({"adapter": Path("a"), "add_tokens": ("<x>",)}, "do not go together"),
    ({"weight_decay": -1.0}, "--weight-decay -1.0 is negative"),
])  # fmt: skip
def test_options_that_contradict_each_other_are_refused(
    options: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=problem):
        TrainOptions(tmp_path, tmp_path, tmp_path / "a", **RUN | options)


def test_the_command_answers_a_suite_and_says_its_accuracy(
    edgeft: Callable[..., Any], tiny_base: Path, tiny_chats: Path, tmp_path: Path
) -> None:
    items = tmp_path / "items.jsonl"
    items.write_text(json.dumps({"instruction": "lamp a on 0", "output": "x"}) + "\n")
    command = ("train-qlora", "--base", tiny_base, "--data", tiny_chats, "--output", tmp_path / "a",
               "--steps", 1, "--batch-size", 2, "--compute-type", "fp32")  # fmt: skip
    wrong = edgeft(*command, "--eval-limit", 2)
    assert wrong.code == 2 and "need --eval-items" in wrong.err
    tiny_chats.with_name("bad.jsonl").write_text(tiny_chats.read_text() + '{"text": "x"}\n')
    command = (*command, "--data", tiny_chats.with_name("bad.jsonl"), "--bad-rows", "skip")
    ran = edgeft(*command, "--eval-items", items, "--eval-scorer", "contains")
    assert ran.code == 0, ran.err
    assert "accuracy 0.000 at 1" in ran.err
    assert store.read_manifest(tmp_path / "a").facts["accuracy"]["scorer"] == "contains"  # type: ignore[union-attr]


def test_calls_of_answers_are_read_where_the_scorer_compares_them(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = ToolCall("dim", '{"to": 30}')
    example = Example((Message("user", "dim it"), Message("assistant", "", (call,))))
    items = AnswerItems((example,), tool_call, "tool-call", 64, reads_calls=True)
    answering = Answering(items, tiny_base, batch_size=1)
    for text, accuracy in ((HERMES.write([call]), 1), ("dim", 0)):
        monkeypatch.setattr(answering, "replies", lambda model, text=text: [(text, True)])
        assert answering.accuracy(None) == accuracy
