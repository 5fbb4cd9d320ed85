"""Deferred matrices give what transformers' own model holds, whatever is done with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.converters.onnx.deferred import deferred_model, evaluate, is_deferred, leaves
from edgeft.errors import InputError
from edgeft.merge.view import open_merged

Family = Callable[[str], tuple[Path, Path, Any]]


@pytest.mark.parametrize("case", ["llama", "qwen2", "pythia", "mixtral", "qwen2_moe"])
def test_every_parameter_is_the_checkpoints(make: Family, case: str) -> None:
    import torch
    import transformers

    base, _, _ = make(case)
    merged = open_merged(base, None)
    model = deferred_model(merged)
    wanted = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    own = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in wanted.named_parameters(remove_duplicate=False):
        deferred = is_deferred(own[name])
        assert deferred == (parameter.ndim > 1), name
        got = evaluate(own[name], merged.tensor) if deferred else own[name].numpy()
        np.testing.assert_array_equal(got, parameter.detach().numpy())


def test_what_is_done_with_matrices_is_done_later(make: Family) -> None:
    import torch

    base, _, _ = make("llama")
    merged = open_merged(base, None)
    attention = deferred_model(merged).model.layers[1].self_attn
    names = [f"model.layers.1.self_attn.{part}_proj.weight" for part in "qkv"]
    q, k, v = (torch.from_numpy(merged.tensor(name)) for name in names)
    for build in (
        lambda q, k, v: torch.cat([q, k, v]),
        lambda q, k, v: torch.cat([q, k, v]).reshape(-1, q.shape[1]).T,
        lambda q, k, v: q.chunk(4, dim=0)[2],
        lambda q, k, v: torch.split(torch.cat([q, k]), 8)[9] * 2 + 1,
        lambda q, k, v: torch.nn.Parameter(v[3:9].t(), requires_grad=False).view(-1, 6),
        lambda q, k, v: q.view(4, -1, q.shape[1]).transpose(0, 1).reshape(q.shape),
    ):
        made = build(*(getattr(attention, f"{part}_proj").weight for part in "qkv"))
        assert is_deferred(made) and made.device.type == "meta"
        np.testing.assert_array_equal(evaluate(made, merged.tensor), build(q, k, v).numpy())
    assert leaves(torch.cat([attention.k_proj.weight, attention.q_proj.weight])) == (
        names[1],
        names[0],
    )


def test_a_reader_may_give_other_types(make: Family) -> None:
    base, _, _ = make("llama")
    merged = open_merged(base, None)
    weight = deferred_model(merged).model.layers[0].self_attn.q_proj.weight
    marks = np.arange(weight.numel(), dtype=np.uint8).reshape(weight.shape)
    np.testing.assert_array_equal(evaluate(weight.T, lambda name: marks), marks.T)


def test_a_weight_that_is_missing_is_named(tiny_base: Path) -> None:
    merged = open_merged(tiny_base, None)
    del merged.shapes["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(InputError, match=r"no weights for model\.layers\.1\.mlp\.up_proj"):
        deferred_model(merged)
