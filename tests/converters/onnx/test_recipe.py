"""Bits of every matrix by the name of its node."""

from __future__ import annotations

import pytest

from edgeft.converters.onnx.recipe import HEAD_NODE, recipe_of

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("quant", "bits"),
    [
        ("f32", (0, 0, 0, 0)),
        ("int8", (8, 8, 8, 8)),
        ("int4-mixed", (8, 4, 8, 4)),
        ("gptq-int4", (8, 4, 4, 4)),
        ("int4", (8, 4, 4, 4)),
    ],
)
def test_bits_of_head_and_layers(quant: str, bits: tuple[int, ...]) -> None:
    """The head, a sensitive product in a layer that matters and in one that does not, another one."""
    nodes = (
        HEAD_NODE,
        "/model/layers.3/mlp/down_proj/MatMul",
        "/model/layers.0/mlp/down_proj/MatMul",
        "/model/layers.0/mlp/up_proj/MatMul",
    )
    recipe = recipe_of(quant, block=32)
    head, other, sensitive, up = (recipe.bits_of(node, layers=16) for node in nodes)
    assert (head, other, sensitive, up) == bits
    assert recipe.bits_of("/model/layers.0/moe/router/MatMul", layers=16) == 0
    assert (recipe.grid.bits, recipe.grid.columns) == (recipe.layer_bits, 32)
