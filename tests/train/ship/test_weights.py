"""Layers at a file's values: the oracles are the export's plan, ggml, and autograd on the recipe."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Family

from edgeft.errors import InputError
from edgeft.quantization import ggml
from edgeft.weights.text_base import open_base
from helpers.adapters import with_lora
from helpers.llama_quantize import gguf_type
from helpers.tiny import make_base

LINEARS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
"""two linear layers of a block do not train"""


@pytest.fixture(scope="module")
def wide_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 256, so that K-quants fit."""
    return make_base(tmp_path_factory.mktemp("wide") / "base", hidden=256)


@pytest.fixture
def model(wide_base: Path) -> Any:
    """LoRA that is not zero on some linear layers, each as one function."""
    return with_lora(wide_base, LINEARS)


def file_values(model: Any, base: Path, quant: str) -> dict[str, Any]:
    """Checkpoint name -> peft's merged weight after ggml's quantizer, in the export's types."""
    from edgeft.converters.gguf.plan import make_plan
    from edgeft.converters.options import ConvertOptions
    from edgeft.merge.view import open_merged

    merged = copy.deepcopy(model).merge_and_unload().state_dict()
    plan = make_plan(open_merged(base, None), quant, ConvertOptions(threads=1))
    values = {}
    for name, target in plan.targets.items():
        weight, qtype = merged[target.parts[0].source].numpy(), plan.types[name]
        if qtype.name != "F32":  # each row is quantized by itself, so that their order is no matter
            weight = dequantized(ggml.quantize(weight, qtype, threads=1), qtype)
        values[target.parts[0].source] = weight
    return values


@pytest.mark.parametrize("quant", ["q4_0", "q4_k_m"])
def test_the_model_computes_with_the_files_values(model: Any, wide_base: Path, quant: str) -> None:
    import torch
    import transformers

    from edgeft.train.ship.weights import ShipWeights

    values = file_values(model, wide_base, quant)
    ShipWeights(model, open_base(wide_base), quant).start()
    oracle = transformers.AutoModelForCausalLM.from_pretrained(wide_base, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in oracle.named_parameters():
            parameter.copy_(torch.from_numpy(values[name]))
        ids = torch.arange(24)[None]
        expected, got = oracle(ids).logits, model(ids).logits
    # peft sums in another order, so that a few weights may round the other way.
    assert float((got - expected).norm() / expected.norm()) < 1e-3
    with torch.no_grad(), model.disable_adapter():
        assert float((model(ids).logits - expected).norm() / expected.norm()) > 0.05


def test_gradients_are_loras_at_the_quantized_weights(model: Any, wide_base: Path) -> None:
    """y = x Qᵀ + L(x) - L(x).detach(), where L sees x as a constant."""
    import torch

    from edgeft.train.ship.weights import ShipWeights

    ShipWeights(model, open_base(wide_base), "q4_0").start()
    layer = model.get_base_model().model.layers[1].mlp.down_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    x = torch.randn(3, 5, 128, requires_grad=True)
    weights = torch.randn(3, 5, 256)

    def gradients(y: Any) -> list[Any]:
        return list(torch.autograd.grad((y * weights).sum(), [x, a, b]))

    lora = (x.detach() @ a.t()) @ b.t() * layer.scaling["default"]
    expected = gradients(x @ layer.ship_weight.t() + lora - lora.detach())
    for ours, theirs in zip(gradients(layer(x)), expected, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


def test_slow_types_take_the_nearest_values_between_two_runs_of_their_quantizer(
    model: Any, wide_base: Path
) -> None:
    import torch

    from edgeft.quantization.ggml_blocks import grid_of, values
    from edgeft.train.ship.weights import ShipWeights

    ship = ShipWeights(model, open_base(wide_base), "q4_k_m")
    ship.start()
    assert ship.exact_steps > 1
    layer = model.get_base_model().model.layers[0].mlp.up_proj  # Q4_K
    data = ggml.quantize(merged(layer), gguf_type("Q4_K"), threads=1)
    grid = grid_of(data, gguf_type("Q4_K"))
    with torch.no_grad():
        layer.lora_B["default"].weight.mul_(1.1)
    ship.update(exact=False)
    levels = np.stack([values(grid, np.full((128, 256), code, np.uint8)) for code in range(16)])
    distance = np.abs(levels - merged(layer)).min(0)
    seen = layer.ship_weight.numpy().copy()
    assert np.allclose(np.abs(seen - merged(layer)), distance, atol=1e-6)
    assert (seen == levels).any(0).all(), "the values are the grid's"
    ship.update(exact=True)
    data = ggml.quantize(merged(layer), gguf_type("Q4_K"), threads=1)
    exact = dequantized(data, gguf_type("Q4_K"))
    assert np.array_equal(layer.ship_weight.numpy(), exact)
    assert not np.array_equal(seen, exact)


def dequantized(data: Any, qtype: Any) -> Any:
    """gguf-py's values."""
    from gguf import dequantize

    return dequantize(data, qtype)


def merged(layer: Any) -> Any:
    b, a = layer.lora_B["default"].weight.detach(), layer.lora_A["default"].weight.detach()
    product = (b.numpy() * np.float32(layer.scaling["default"])) @ a.numpy()
    return layer.base_layer.weight.numpy() + product


def test_the_recorded_hashes_are_those_of_the_values(model: Any, wide_base: Path) -> None:
    """Training ends with what it computed with: the same bytes, in the order of the file's rows."""
    from edgeft.train.ship import file_tensors
    from edgeft.train.ship.weights import ShipWeights

    ship = ShipWeights(model, open_base(wide_base), "q8_0")
    ship.start()
    tensors = ship.facts()["tensors"]
    place = file_tensors(open_base(wide_base), "q8_0")["model.layers.0.self_attn.q_proj.weight"]
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    qtype, digest = tensors[place.name]
    data = ggml.quantize(merged(layer)[place.order], place.rounding.qtype, threads=1)
    assert qtype == "Q8_0" and digest == hashlib.blake2b(data, digest_size=16).hexdigest()
    assert np.array_equal(
        layer.ship_weight.numpy()[place.order], dequantized(data, place.rounding.qtype)
    )
    assert len(tensors) == 15 and "blk.0.attn_output.weight" in tensors, "what does not train, too"


def test_a_head_that_is_the_embedding_cannot_train(wide_base: Path) -> None:
    from edgeft.train.ship.weights import ShipWeights

    with pytest.raises(InputError, match="lm_head.weight has no place of its own"):
        ShipWeights(with_lora(wide_base, ["lm_head"]), open_base(wide_base), "q4_0")


def test_biases_and_norms_are_in_float16_as_in_a_gptq_folder(make: Family) -> None:
    import torch

    from edgeft.train.ship.weights import ShipWeights

    base = make("qwen2")[0]
    model = with_lora(base, ["q_proj", "v_proj"])
    layer = model.get_base_model().model.layers[0]
    bias, norm = layer.self_attn.q_proj.base_layer.bias, layer.input_layernorm.weight
    before = [part.detach().clone() for part in (bias, norm)]
    ship = ShipWeights(model, open_base(base), "4bit")
    ship.start()
    for part, was in zip((bias, norm), before, strict=True):
        assert torch.equal(part, was.half().float()) and not torch.equal(part, was)
    types = {kind for kind, _ in ship.facts()["tensors"].values()}
    assert types == {"F16", "int4_g32_f16"}
