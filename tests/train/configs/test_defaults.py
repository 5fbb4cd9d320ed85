"""LLaMA-Factory's defaults that are transformers' own are those of `TrainingArguments`."""

from __future__ import annotations

import dataclasses

import pytest

from edgeft.train.configs import llama_factory


def test_defaults_of_llama_factory_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    fields = {f.name: f.default for f in dataclasses.fields(transformers.TrainingArguments)}
    defaults = llama_factory.TOOL.defaults({})
    shared = set(defaults) & set(fields)
    assert shared >= {
        "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "seed",
        "num_train_epochs", "lr_scheduler_type", "weight_decay", "max_grad_norm", "optim",
    }  # fmt: skip
    for name in shared:
        default = getattr(fields[name], "value", fields[name])
        assert (default or 0) == defaults[name], name
