"""Counts of activations against the tensors that autograd saves in real models of every family."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from edgeft.train import memory
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
