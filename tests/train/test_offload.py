"""Activations and frozen weights in files: the same bits are learned, and memory holds less."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Family

from edgeft.errors import InputError, ResourceError
from edgeft.files import read_json
from edgeft.models import card_for
from edgeft.train import memory, offload
from edgeft.train.options import TrainOptions
from edgeft.train.registry import check_options, load_method
from edgeft.train.run import train

RUN: dict[str, Any] = {"steps": 2, "batch_size": 4, "micro_batch_size": 2, "save_every": 0,
                       "compute_type": "fp32", "validation_size": 4}  # fmt: skip


def small_model() -> Any:
    import peft
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=100, tie_word_embeddings=True,
    )  # fmt: skip
    rule = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    return peft.get_peft_model(transformers.LlamaForCausalLM(config), rule).train()


def gradients(model: Any, context: Any) -> list[Any]:
    """The loss and every gradient of one backward pass."""
    import torch

    model.zero_grad()
    ids = torch.arange(24).view(2, 12)
    with context:
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
    return [loss.detach(), *(weight.grad for weight in model.parameters() if weight.requires_grad)]


@pytest.mark.parametrize("checkpoints", [False, True])
def test_offloaded_activations_give_the_same_bits(checkpoints: bool, tmp_path: Path) -> None:
    """Each activation is written once, no weight is, and the file is empty before the next batch."""
    import torch

    model = small_model()
    if checkpoints:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    saved: dict[int, Any] = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and storage.nbytes() >= 64:
            saved[storage.data_ptr()] = storage
        return tensor

    plain = gradients(model, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor))
    offloaded = offload.OffloadedActivations(model, tmp_path, smallest_bytes=64)
    written: list[int] = []
    put = offloaded._store.put
    offloaded._store.put = lambda values: written.append(values.numel()) or put(values)  # type: ignore[func-returns-value,method-assign]
    for _ in range(2):
        written.clear()
        for one, other in zip(plain, gradients(model, offloaded), strict=True):
            assert torch.equal(one, other)
        assert sum(written) == sum(storage.nbytes() for storage in saved.values()) > 5000
        assert offloaded._store._end == sum(written)  # type: ignore[union-attr]
    assert not list(tmp_path.iterdir())


def test_a_gpu_keeps_activations_in_the_memory_of_the_host() -> None:
    import torch

    store = offload.HostMemory(torch.device("cpu"))
    values = torch.arange(10, dtype=torch.uint8)
    assert torch.equal(store.get(store.put(values)), values)


def test_a_run_with_everything_offloaded_is_the_run_without(
    tiny_base: Path, tiny_chats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With shared beginnings and LoRA as one function, and a base frozen in NF4."""
    monkeypatch.setattr(offload, "SMALLEST_BYTES", 256)
    saving = {"offload_activations": True, "offload_weights": True}
    one, other = (
        train(TrainOptions(tiny_base, tiny_chats, tmp_path / name, **RUN | more))
        for name, more in (("plain", {}), ("offloaded", saving))
    )
    assert other.facts["shared_prefix"] and other.facts["lora_function"] == 14
    for fact in ("loss", "validation_loss", "nf4"):
        assert other.facts[fact] == one.facts[fact]
    assert other.files["adapter_model.safetensors"] == one.files["adapter_model.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["offloaded", "plain"]


@pytest.mark.parametrize(
    ("method", "dtype"), [("lora", "bf16"), ("qlora", "bf16"), ("dora", "fp32")]
)
def test_mapped_weights_are_those_in_memory(
    method: str, dtype: str, make: Family, tmp_path: Path
) -> None:
    """Every frozen weight lies in a read-only map of a file, which has no name any more."""
    import torch

    base = make("qwen2")[0]
    card = card_for(read_json(base / "config.json"))

    def prepared(**more: Any) -> Any:
        options = TrainOptions(base, base, tmp_path / "out", compute_type=dtype, **more)
        return load_method(method)(options, card).prepare("cpu")

    plain, mapped = prepared(), prepared(offload_weights=True)
    ranges = [
        range(*(int(end, 16) for end in line.split()[0].split("-")))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.split()[1].startswith("r--") and (base.name in line or "(deleted)" in line)
    ]
    for (name, one), (_, other) in zip(
        plain.named_parameters(), mapped.named_parameters(), strict=True
    ):
        assert torch.equal(one, other) and one.dtype == other.dtype, name
        assert other.requires_grad or any(other.data_ptr() in part for part in ranges), name
    assert not list((tmp_path / "out.work").glob("*"))


def test_what_cannot_be_mapped_is_refused(
    make: Family, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(base: Path, **more: Any) -> Any:
        options = TrainOptions(base, base, tmp_path / "out", offload_weights=True, **more)
        check_options("pissa" if base == tmp_path else "lora", options)
        return load_method("lora")(options, card_for(read_json(base / "config.json")))

    with pytest.raises(InputError, match="--offload-weights is not for --method pissa"):
        prepare(tmp_path)
    with pytest.raises(InputError, match="joins the experts of mixtral"):
        prepare(make("mixtral")[0])
    with pytest.raises(InputError, match="not packed ones.*leave --keep-4bit or"):
        prepare(tiny_base, keep_4bit=True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(ResourceError, match="this run is on a GPU"):
        prepare(tiny_base)


def test_the_plan_counts_what_lies_in_files_on_the_disk(tiny_base: Path) -> None:
    def request(**more: Any) -> memory.Request:
        options = TrainOptions(tiny_base, tiny_base, tiny_base / "out", **more)
        batch = memory.Batch(8, 64, 128)
        return memory.Request(memory.read_base(tiny_base), options, memory.LORA, batch)

    plain, moved = request(), request(offload_activations=True)
    mapped = request(offload_activations=True, offload_weights=True)
    assert moved.memory.activations < plain.memory.activations / 2
    assert moved.offloaded_bytes == moved.memory.offloaded > 0 == plain.offloaded_bytes
    assert mapped.needed == moved.needed - moved.memory.base
    assert mapped.offloaded_bytes == moved.offloaded_bytes + moved.memory.base
    assert plain.nearest_fit(moved.of(1).needed) == "--micro-batch-size 1 --offload-activations"
    assert plain.nearest_fit(mapped.of(1).needed) == (
        "--micro-batch-size 1 --offload-weights --offload-activations"
    )


@pytest.mark.slow
def test_a_base_larger_than_the_memory_trains_with_mapped_weights(tmp_path: Path) -> None:
    """The limit is on private memory (RLIMIT_DATA): 538 MB of weights in float32 do not fit."""
    from edgeft.benchmarks.suites import load_suite

    command = [
        sys.executable, "-m", "edgeft", "train", "--method", "lora", "--base", "smollm2-135m",
        "--data", str(load_suite("smart_home").train), "--output", str(tmp_path / "out"),
        "--steps", "1", "--batch-size", "1", "--validation-size", "0", "--save-every", "0",
        "--compute-type", "fp32", "--threads", "1", "--checkpoint-activations",
    ]  # fmt: skip

    def run(*more: str) -> Any:
        limit = (900 << 20, 900 << 20)
        return subprocess.run(
            [*command, *more], capture_output=True, text=True, check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, limit),
        )  # fmt: skip

    without, with_map = run(), run("--offload-weights")
    assert without.returncode and "memory" in without.stderr.lower()
    assert with_map.returncode == 0, with_map.stderr
