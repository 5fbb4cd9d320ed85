"""Random adapters of peft on a base, and what peft makes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgeft.merge.view import Merged
from edgeft.weights.checkpoint import Checkpoint, Spec, write_safetensors
from helpers.converting import convert

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
IDS = list(range(3, 35))


def load(base: Path) -> Any:
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


def reload(base: Path, adapter: Path, rows: int | None = None) -> Any:
    """The live adapter as a user opens it."""
    import peft

    model = load(base)
    if rows:
        model.resize_token_embeddings(rows)
    return peft.PeftModel.from_pretrained(model, adapter).eval()


def make_adapter(base: Path, adapter: Path, rows: int | None = None, **lora: Any) -> Path:
    """An adapter whose tensors are all random."""
    import peft
    import torch

    torch.manual_seed(1)
    model = load(base)
    if rows:
        model.resize_token_embeddings(rows)
    options = {"r": 4, "lora_alpha": 6, "target_modules": ATTENTION, "task_type": "CAUSAL_LM"}
    live = peft.get_peft_model(model, peft.LoraConfig(**(options | lora)))
    with torch.no_grad():
        for name, parameter in live.named_parameters():
            if "magnitude" in name:
                parameter.mul_(torch.rand_like(parameter) + 0.5)
            elif parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    live.save_pretrained(adapter)
    return adapter


def logits(model: Any) -> Any:
    import torch

    with torch.inference_mode():
        return model(torch.tensor([IDS])).logits[0].numpy()


def assert_merged(merged: Merged, base: Path, adapter: Path) -> None:
    """As peft merges it, whole and by rows."""
    wanted = reload(base, adapter).merge_and_unload().state_dict()
    changed = 0
    plain = Checkpoint(base)
    for name in merged.shapes:
        got = merged.tensor(name)
        np.testing.assert_allclose(got, wanted[name].numpy(), rtol=0, atol=2e-6, err_msg=name)
        rows = np.arange(0, merged.shapes[name][0], 3)
        np.testing.assert_allclose(merged.rows(name, rows), got[rows], rtol=0, atol=1e-6)
        changed += not np.array_equal(got, plain.read(name))
    assert changed


def assert_live(merged: Merged, live: Any, folder: Path) -> None:
    """The exported folder, opened by transformers, computes what the live adapter computes."""
    folder.mkdir()
    convert(merged, folder, "f32", format="hf").proof()
    wanted = logits(live)
    got = logits(load(folder))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4 * wanted.std())


def edit(
    adapter: Path, drop: str = "\0", dtype: str = "F32", **values: Callable[[Any], Any]
) -> None:
    """Rewrite an adapter without the tensors whose name holds `drop`, or with others."""
    own = Checkpoint(adapter / "adapter_model.safetensors")
    tensors = {name: own.read(name) for name in own.tensors if drop not in name}
    for part, change in values.items():
        (name,) = (name for name in tensors if part.replace("__", ".") in name)
        tensors[name] = change(tensors[name])
    specs = [Spec(name, dtype, array.shape) for name, array in tensors.items()]
    write_safetensors(adapter / "adapter_model.safetensors", specs, list(tensors.values()))


def with_lora(base: Path, targets: list[str]) -> Any:
    """The base with LoRA that is not zero on these linear layers, each as one function."""
    import peft
    import torch
    import transformers

    from edgeft.train import lora_function

    plain = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    plain.requires_grad_(False)
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM")
    model = peft.get_peft_model(plain, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2)
    lora_function.install(model)
    return model
