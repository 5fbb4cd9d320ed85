"""Runs that do not fit are refused with what fits; options that save memory learn the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgeft import machine
from edgeft.errors import ResourceError
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import encoder
from edgeft.train import memory, run
from edgeft.train.examples import largest_batch
from edgeft.train.memory import Batch
from edgeft.train.options import TrainOptions

STEPS: dict[str, Any] = {"steps": 2, "batch_size": 4, "micro_batch_size": 4, "save_every": 0,
                         "compute_type": "fp32", "validation_size": 0}  # fmt: skip


def tiny_request(base: Path, chats: Path, **options: Any) -> memory.Request:
    run = TrainOptions(base, chats, base / "out", **STEPS | options)
    return memory.Request(memory.read_base(base), run, memory.LORA, Batch(4, 64, 60))


def test_what_does_not_fit_is_refused_with_the_nearest_that_does(
    tiny_base: Path, tiny_chats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_import(*_: Any) -> None:
        raise AssertionError("refused too late")

    options = TrainOptions(tiny_base, tiny_chats, tmp_path / "out", **STEPS)
    monkeypatch.setattr(run, "load_objective", no_import)
    row = run.method_row("qlora")
    splits = run.read_splits(options)[1]
    chat = ChatTemplate.from_folder(tiny_base)
    batch = largest_batch(options, splits.train, chat, encoder(tiny_base))
    request = memory.Request(memory.read_base(tiny_base), options, row.trains, batch)
    free = request.of(2).needed
    assert request.of(1).needed < free < request.needed
    monkeypatch.setattr(machine, "available_memory", lambda: free)
    with pytest.raises(ResourceError, match="training needs about .*or --micro-batch-size 2"):
        run.train(options)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.work").exists()
    monkeypatch.setattr(machine, "available_memory", lambda: 1000)
    with pytest.raises(ResourceError, match="take a smaller base or shorter examples"):
        run.train(options)


def test_the_nearest_fit_changes_as_little_as_it_can(tiny_base: Path, tiny_chats: Path) -> None:
    request = tiny_request(tiny_base, tiny_chats)
    assert request.nearest_fit(request.needed) == ""
    assert request.nearest_fit(request.needed - 1) == "--micro-batch-size 2"
    one = request.of(1)
    assert request.nearest_fit(one.needed - 1).endswith("--checkpoint-activations")
    assert request.nearest_fit(0) == ""
    assert request.largest_micro_batch(request.needed) == 4
    assert request.largest_micro_batch(one.needed) == 1


def test_weights_for_a_file_count_twice_and_stay_in_memory(
    tiny_base: Path, tiny_chats: Path
) -> None:
    plain, ship = (tiny_request(tiny_base, tiny_chats, **more) for more in ({}, {"ship": "q4_0"}))
    linears = [linear for layer in range(2) for linear in ship.base.linears(layer)]
    twice = 4 * sum(linear.rows * linear.columns for linear in linears)
    assert ship.needed - plain.needed == twice > 0
    hint = ship.nearest_fit(ship.of(1).needed - 1)
    assert hint == "--micro-batch-size 1 --checkpoint-activations"


def test_a_teacher_is_what_the_training_found(tiny_base: Path, tiny_chats: Path) -> None:
    """LoRA's matrices; W where --ship-from has replaced it; a text's probabilities where they are the peak."""
    ship = {"ship": "q4_0", "adapter": Path("adapter")}
    of_file = {**ship, "ship_from": Path("q4_0.gguf")}

    def needed(**options: Any) -> int:
        return tiny_request(tiny_base, tiny_chats, **options).needed

    request = tiny_request(tiny_base, tiny_chats, **ship)
    linears = [linear for layer in range(2) for linear in request.base.linears(layer)]
    lora = 4 * request.options.lora_r * sum(linear.rows + linear.columns for linear in linears)
    held = 4 * sum(linear.rows * linear.columns for linear in linears)
    assert needed(**ship, ship_distill=0.5) - needed(**ship) == lora
    assert needed(**of_file, ship_distill=0.5) - needed(**of_file) == lora + held
    text = needed(**ship, ship_text=Path("text")) - needed(**ship, ship_distill=0.5)
    assert text > 2 * 256 * request.base.sizes.vocabulary * 4


def test_an_automatic_micro_batch_is_halved_where_memory_runs_out(
    tiny_base: Path, tiny_chats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result is that of a run with the smaller micro-batch from the beginning."""
    from edgeft.train.objectives.sft import AnswerTrainer

    wanted = run.train(
        TrainOptions(tiny_base, tiny_chats, tmp_path / "two", **STEPS | {"micro_batch_size": 2})
    )
    computed = AnswerTrainer.compute_loss

    def small_memory(self: Any, model: Any, inputs: Any, *more: Any, **options: Any) -> Any:
        if len(inputs["input_ids"]) > 2:
            raise RuntimeError(
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
            )
        return computed(self, model, inputs, *more, **options)

    monkeypatch.setattr(AnswerTrainer, "compute_loss", small_memory)
    auto = TrainOptions(
        tiny_base, tiny_chats, tmp_path / "auto", **STEPS | {"micro_batch_size": "auto"}
    )
    manifest = run.train(auto)
    assert manifest.facts["micro_batch_size"] == 2
    assert manifest.options["micro_batch_size"] == "auto" and manifest.options["batch_size"] == 4
    assert manifest.facts["loss"] == wanted.facts["loss"]
    weights = [
        folder / "adapter_model.safetensors" for folder in (tmp_path / "two", tmp_path / "auto")
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    with pytest.raises(RuntimeError, match="can't allocate"):  # not automatic
        run.train(TrainOptions(tiny_base, tiny_chats, tmp_path / "four", **STEPS))


def test_checkpointed_activations_and_eager_attention_learn_the_same(
    tiny_base: Path, tiny_chats: Path, tmp_path: Path
) -> None:
    plain = run.train(TrainOptions(tiny_base, tiny_chats, tmp_path / "plain", **STEPS))
    for name, more in (
        ("less", {"checkpoint_activations": True}),
        ("eager", {"attention": "eager"}),
    ):
        other = run.train(TrainOptions(tiny_base, tiny_chats, tmp_path / name, **STEPS | more))
        losses = [[loss for _, loss in each.facts["loss"]] for each in (other, plain)]
        assert losses[0] == pytest.approx(losses[1], abs=2e-4)
        assert set(other.options) - set(plain.options) == set(more)


def test_flash_attention_is_refused_without_a_gpu(
    tiny_base: Path, tiny_chats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeft.train.memory.request.has_gpu", lambda: False)
    options = TrainOptions(tiny_base, tiny_chats, tmp_path / "out", attention="flash_attention_2")
    with pytest.raises(ResourceError, match="flash_attention_2 needs a GPU .*sdpa"):
        run.train(options)
