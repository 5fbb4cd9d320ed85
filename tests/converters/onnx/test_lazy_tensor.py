"""Lazy matrices have the values of transformers' model, whatever is computed with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.errors import InputError
from edgeft.merge.view import open_merged

Family = Callable[[str], tuple[Path, Path, Any]]


@pytest.fixture(scope="module")
def lazy_tensor() -> Any:
    """The module, which imports torch."""
    from edgeft.converters.onnx import lazy_tensor

    return lazy_tensor


@pytest.mark.parametrize("case", ["llama", "qwen2", "pythia", "mixtral", "qwen2_moe"])
def test_parameters_are_those_of_the_checkpoint(make: Family, lazy_tensor: Any, case: str) -> None:
    import torch
    import transformers

    base, _, _ = make(case)
    merged = open_merged(base, None)
    model = lazy_tensor.lazy_model(merged)
    wanted = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in wanted.named_parameters(remove_duplicate=False):
        lazy = isinstance(parameters[name], lazy_tensor.LazyTorchTensor)
        assert lazy == (parameter.ndim > 1), name
        got = parameters[name].evaluate(merged.tensor) if lazy else parameters[name].numpy()
        np.testing.assert_array_equal(got, parameter.detach().numpy())


def test_operations_give_the_same_values_later(make: Family, lazy_tensor: Any) -> None:
    import torch

    base, _, _ = make("llama")
    merged = open_merged(base, None)
    attention = lazy_tensor.lazy_model(merged).model.layers[1].self_attn
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
        assert isinstance(made, lazy_tensor.LazyTorchTensor) and made.device.type == "meta"
        np.testing.assert_array_equal(made.evaluate(merged.tensor), build(q, k, v).numpy())
    packed = torch.cat([attention.k_proj.weight, attention.q_proj.weight])
    assert packed.sources() == (
        names[1],
        names[0],
    )


def test_reader_may_give_other_types(make: Family, lazy_tensor: Any) -> None:
    base, _, _ = make("llama")
    merged = open_merged(base, None)
    weight = lazy_tensor.lazy_model(merged).model.layers[0].self_attn.q_proj.weight
    marks = np.arange(weight.numel(), dtype=np.uint8).reshape(weight.shape)
    np.testing.assert_array_equal(weight.T.evaluate(lambda name: marks), marks.T)


def test_missing_weight_is_named(tiny_base: Path, lazy_tensor: Any) -> None:
    merged = open_merged(tiny_base, None)
    del merged.shapes["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(InputError, match=r"no weights for model\.layers\.1\.mlp\.up_proj"):
        lazy_tensor.lazy_model(merged)
