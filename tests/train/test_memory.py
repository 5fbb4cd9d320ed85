"""Predicted memory: counts of activations against the tensors that autograd saves in real models."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from edgeft import machine
from edgeft.benchmarks.studies import memory as study
from edgeft.errors import ResourceError
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import encoder
from edgeft.train import memory, run
from edgeft.train.examples import largest_batch
from edgeft.train.memory import Batch
from edgeft.train.options import TrainOptions
from helpers.families import CHATGLM, TINY

WIDE: dict[str, Any] = {
    "hidden_size": 192, "intermediate_size": 400, "num_hidden_layers": 3, "num_attention_heads": 6,
    "vocab_size": 300, "max_position_embeddings": 256,
}  # fmt: skip
"""large enough that what is counted outweighs masks and indices"""
PLAIN = [
    case
    for case, tiny in TINY.items()
    if tiny.config != CHATGLM
    and "-" not in case
    and not {"moe_intermediate_size", "num_experts", "num_local_experts"} & set(tiny.options)
]
BATCH = Batch(examples=2, length=48, learned=20)


def model_of(case: str, dtype: Any) -> tuple[Any, dict[str, Any]]:
    """A random model of a family, and its config.json."""
    import transformers

    tiny = TINY[case]
    heads = {} if tiny.config == "GPTNeoXConfig" else {"num_key_value_heads": 2}
    config = getattr(transformers, tiny.config)(
        **copy.deepcopy(tiny.options | WIDE | heads | {"pad_token_id": 0})
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model, config.to_dict() | {"architectures": [type(model).__name__]}


def saved_bytes(model: Any, batch: Batch) -> int:
    """Bytes of the tensors that a forward pass keeps for the backward pass, without weights."""
    import torch

    from edgeft.train.objectives.sft import only_rows

    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, Any] = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    causal_lm = model.get_base_model() if hasattr(model, "get_base_model") else model
    ids = torch.randint(0, 300, (batch.examples, batch.length))
    mask = torch.ones_like(ids)
    mask[1, -3:] = 0
    labels = torch.full((batch.examples, batch.length - 1), -100)
    labels[:, : batch.learned // batch.examples] = 7
    learned = labels != -100
    model.train()
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        only_rows(causal_lm.get_output_embeddings(), learned),
    ):
        output = causal_lm(input_ids=ids, attention_mask=mask, use_cache=False)
        torch.nn.functional.cross_entropy(output.logits.float(), labels[learned]).sum()
    return sum(storage.nbytes() for storage in kept.values())


def as_trained(model: Any, method: str, targets: list[str]) -> Any:
    import peft

    if method == "all":
        return model
    for name, weight in model.named_parameters():
        weight.requires_grad_(method == "norms" and "norm" in name)
    if method == "norms":
        return model
    kinds = {"lora": {}, "dora": {"use_dora": True}}
    options = {"r": 4, "target_modules": targets, "task_type": "CAUSAL_LM"} | kinds[method]
    return peft.get_peft_model(model, peft.LoraConfig(**options))


METHODS = {"lora": memory.LORA, "all": memory.ALL, "norms": memory.NORMS}


FAST = {("llama", "lora", "float32"), ("llama", "all", "float32"), ("gemma3", "lora", "bfloat16"),
        ("pythia", "norms", "bfloat16")}  # fmt: skip
COMBINATIONS = [
    pytest.param(*each, id="-".join(each), marks=() if each in FAST else pytest.mark.slow)
    for each in itertools.product(PLAIN, METHODS, ("float32", "bfloat16"))
]


@pytest.mark.parametrize(("case", "method", "dtype"), COMBINATIONS)
def test_activations_are_those_that_autograd_keeps(
    case: str, method: str, dtype: str, tmp_path: Path
) -> None:
    import torch

    model, config = model_of(case, getattr(torch, dtype))
    (tmp_path / "config.json").write_text(json.dumps(config))
    base = memory.read_base(tmp_path)
    options = TrainOptions(tmp_path, tmp_path, tmp_path, lora_r=4, lora_alpha=8)
    trained = as_trained(model, method, list(base.card.lora_targets))
    value_bytes = 4 if dtype == "float32" else 2
    predicted, _ = memory.activation_bytes(base, options, METHODS[method], BATCH, value_bytes)
    assert predicted == pytest.approx(saved_bytes(trained, BATCH), rel=0.08)


STEPS: dict[str, Any] = {"steps": 2, "batch_size": 4, "micro_batch_size": 4, "save_every": 0,
                         "compute_type": "fp32", "validation_size": 0}  # fmt: skip


def tiny_request(base: Path, chats: Path, **options: Any) -> memory.Request:
    run = TrainOptions(base, chats, base / "out", **STEPS | options)
    return memory.Request(memory.read_base(base), run, memory.LORA, Batch(4, 64, 60))


def test_a_peak_of_a_process_is_predicted(
    tiny_base: Path, tiny_chats: Path, tmp_path: Path
) -> None:
    command = ["train-qlora", "--base", str(tiny_base), "--data",
               str(tiny_chats), "--output", str(tmp_path / "out"), "--steps", "2"]  # fmt: skip
    options = TrainOptions(tiny_base, tiny_chats, tmp_path)
    predicted = memory.estimate(
        memory.read_base(tiny_base), options, memory.LORA, Batch(8, 60, 120)
    )
    assert predicted.peak == pytest.approx(study.measured_peak(command), rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["plain", "checkpoint"])
@pytest.mark.parametrize("model", study.MODELS)
def test_peaks_of_larger_models_are_predicted(model: str, variant: str, tmp_path: Path) -> None:
    (row,) = study.peaks(tmp_path, [model], ["qlora"], [variant], micro_batch=4)
    assert row.ratio == pytest.approx(1, abs=0.15)


def test_files_count_only_where_they_are_mapped() -> None:
    """A file stays mapped while the model uses a tensor where it lies in the file."""
    parts = {"libraries": 5, "base": 40, "trained": 1, "gradients": 1, "optimizer": 2}
    small = memory.Memory(**parts, files=20, files_stay=False, activations=3, temporary=1)
    assert small.needed == 53 and small.peak == 65, "loading takes most"
    assert dataclasses.replace(small, activations=90).peak == 140
    assert dataclasses.replace(small, files_stay=True).peak == 73


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
