"""The LoRA function computes what peft's layers compute, and says which layers it leaves to peft."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Family

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def batch() -> Any:
    import torch

    draw = torch.Generator().manual_seed(2)
    ids = torch.randint(0, 256, (3, 20), generator=draw)
    return {"input_ids": ids, "labels": ids}


def loss_and_gradients(model: Any) -> tuple[float, dict[str, Any]]:
    model.zero_grad()
    loss = model(**batch()).loss
    loss.backward()
    return float(loss), {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


def wrapped(make: Family, case: str = "llama", **lora: Any) -> Any:
    """A new peft model with LoRA matrices that are not zero."""
    import peft
    import torch

    base = copy.deepcopy(make(case)[2]).unload()
    torch.manual_seed(0)
    options = {"r": 4, "lora_alpha": 8, "target_modules": LINEARS, "task_type": "CAUSAL_LM"}
    model = peft.get_peft_model(base, peft.LoraConfig(**options | lora))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2)
    return model


@pytest.mark.parametrize(
    "case, lora", [("llama", {}), ("llama-linear", {"use_rslora": True}), ("qwen2", {"r": 3})]
)
def test_loss_and_gradients_are_those_of_peft(
    make: Family, case: str, lora: dict[str, Any]
) -> None:
    """llama-linear and qwen2 have biases."""
    from edgeft.train import lora_function

    model = wrapped(make, case, **lora)
    names = set(model.state_dict())
    loss, gradients = loss_and_gradients(model)
    count, reason = lora_function.install(model)
    assert count == 14 and not reason
    ours, found = loss_and_gradients(model)
    assert ours == pytest.approx(loss, rel=1e-6)
    for name, gradient in gradients.items():
        assert float((found[name] - gradient).norm() / gradient.norm()) < 1e-5, name
    assert set(model.state_dict()) == names, "what is saved is what peft saves"


def test_every_layer_and_the_head_go_through_it(
    make: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeft.train import lora_function

    model, shapes, product = wrapped(make), [], lora_function.frozen_product

    def watched(x: Any, weight: Any) -> Any:
        shapes.append(tuple(weight.shape))
        return product(x, weight)

    monkeypatch.setattr(lora_function, "frozen_product", watched)
    lora_function.install(model)
    loss_and_gradients(model)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    assert shapes.count((vocabulary, 64)) == 1 and shapes.count((64, vocabulary)) == 1
    # Nothing below the first layer trains: its q, k and v compute no gradient of their input.
    assert shapes.count((64, 32)) == 2 * (2 - 1) and shapes.count((32, 64)) == 2 * 2


def test_a_pass_without_the_adapter_is_the_bases(make: Family) -> None:
    """Preference objectives take their reference from it."""
    import torch

    from edgeft.train import lora_function

    model = wrapped(make)
    with torch.no_grad(), model.disable_adapter():
        reference = float(model(**batch()).loss)
    lora_function.install(model)
    with torch.no_grad(), model.disable_adapter():
        assert float(model(**batch()).loss) == pytest.approx(reference, rel=1e-6)
    assert float(model(**batch()).loss) != pytest.approx(reference, rel=1e-3)


def test_checkpointed_activations_give_the_same_gradients(make: Family) -> None:
    from edgeft.train import lora_function

    model = wrapped(make).train()
    _, gradients = loss_and_gradients(model)
    lora_function.install(model)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    _, found = loss_and_gradients(model)
    for name, gradient in gradients.items():
        assert float((found[name] - gradient).norm() / gradient.norm()) < 1e-5, name


def second_adapter(model: Any) -> None:
    import peft

    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=LINEARS))


def training_base(model: Any) -> None:
    model.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight.requires_grad_(True)


def hooked(model: Any) -> None:
    layer = model.get_base_model().model.layers[0].self_attn.q_proj.base_layer
    layer.register_forward_hook(lambda *_: None)


@pytest.mark.parametrize(
    "lora, change, count, reason",
    [
        ({"use_dora": True}, None, 0, "DoraLinearVariant"),
        ({"lora_dropout": 0.1}, None, 0, "LoRA dropout"),
        ({"lora_bias": True}, None, 0, "LoRA with a bias"),
        ({}, second_adapter, 0, "more than one adapter"),
        ({}, training_base, 13, "the base trains, too"),
        ({}, hooked, 13, "hooks on its layers"),
        ({"target_modules": [*LINEARS, "embed_tokens"]}, None, 14, "LoRA on Embedding"),
    ],
)
def test_what_is_not_plain_lora_stays_as_in_peft(
    make: Family,
    lora: dict[str, Any],
    change: Callable[[Any], None] | None,
    count: int,
    reason: str,
) -> None:
    from edgeft.train import lora_function

    model = wrapped(make, "llama-linear" if lora.get("lora_bias") else "llama", **lora).eval()
    if change:
        change(model)
    loss, gradients = loss_and_gradients(model)
    assert lora_function.install(model) == (count, reason)
    ours, found = loss_and_gradients(model)
    assert ours == pytest.approx(loss, rel=1e-6)
    assert set(found) == set(gradients)


def test_a_bfloat16_base_computes_in_float32_between_its_layers(make: Family) -> None:
    """Its gradients are nearer to float32's than those of a pass in bfloat16."""
    import torch

    from edgeft.train import lora_function

    exact = wrapped(make)
    rounded = copy.deepcopy(exact)
    for name, parameter in [*exact.named_parameters(), *rounded.named_parameters()]:
        if "lora_" not in name:
            parameter.data = parameter.data.bfloat16()
    for parameter in exact.parameters():
        parameter.data = parameter.data.float()
    plain = loss_and_gradients(rounded)
    count, reason = lora_function.install(rounded)
    assert count == 14 and not reason
    q = rounded.get_base_model().model.layers[0].self_attn.q_proj
    assert q.base_layer.weight.dtype == torch.bfloat16
    assert q(torch.randn(2, 64)).dtype == torch.float32
    wanted, found = loss_and_gradients(exact), loss_and_gradients(rounded)

    def distance(gradients: dict[str, Any]) -> float:
        pairs = [(gradients[name] - gradient).norm() ** 2 for name, gradient in wanted[1].items()]
        whole = sum(gradient.norm() ** 2 for gradient in wanted[1].values())
        return float((sum(pairs) / whole) ** 0.5)

    assert distance(found[1]) < 0.8 * distance(plain[1]) < 0.1
    assert found[0] == pytest.approx(wanted[0], rel=3e-3)


def test_a_bfloat16_model_with_other_matrices_stays_as_it_is(make: Family) -> None:
    """The experts of a mixture are no linear layers."""
    import torch

    from edgeft.train import lora_function

    model = wrapped(make, "mixtral", target_modules=["q_proj", "o_proj"])
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.bfloat16()
    count, reason = lora_function.install(model)
    assert count == 0 and "computes in bfloat16" in reason
    assert model.get_base_model().model.norm.weight.dtype == torch.bfloat16


def test_the_saved_adapter_is_pefts(make: Family, tmp_path: Path) -> None:
    import peft
    import torch

    from edgeft.train import lora_function

    model = wrapped(make)
    model.save_pretrained(tmp_path / "before")
    lora_function.install(model)
    model.save_pretrained(tmp_path / "after")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes()
    base = copy.deepcopy(make("llama")[2]).unload()
    live = peft.PeftModel.from_pretrained(base, tmp_path / "after")
    with torch.no_grad():
        ours, theirs = model(**batch()).logits, live(**batch()).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
