"""An adapter of an earlier training -> the start of this one (`--adapter`).

check_adapter(options, base)            # before the base is loaded
load_adapter(model, adapter, base)      # into peft's model that the method has prepared
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeft import store
from edgeft.adapter.config import scaling
from edgeft.adapter.folder import WEIGHTS, adapter_home, file_facts, open_adapter
from edgeft.adapter.read import Weighted, read_adapters
from edgeft.errors import InputError
from edgeft.progress import say
from edgeft.train.options import TrainOptions
from edgeft.train.ship import check_file
from edgeft.weights.text_base import TextBase

DEFAULT_RANK = 8
"""peft's default, of alpha, too"""
SAME = {"peft_type": "LORA", "use_dora": False, "use_rslora": False}
"""key of adapter_config.json that must agree with the method's -> peft's default"""


def check_adapter(options: TrainOptions, base: TextBase) -> None:
    """InputError where the options have another shape, AdapterError for the adapter of another base."""
    assert options.adapter is not None
    config, _ = open_adapter(options.adapter, options.base)
    read_adapters([Weighted(options.adapter)], options.base, base.weights, base.card, base.config)
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        raise InputError(
            f"{options.adapter}: some modules have ranks of their own, which cannot be trained on",
            "export it into a base: edgeft merge-export --format hf",
        )
    rank = config.get("r", DEFAULT_RANK)
    if config["peft_type"] == "LORA" and rank > options.lora_r:
        raise InputError(
            f"{options.adapter} has rank {rank}, more than {options.lora_r}", f"--lora-r {rank}"
        )


def check_ship_from(options: TrainOptions, base: TextBase | None = None) -> None:
    """InputError for a --ship-from that is no export of --adapter alone, or of another type, and for an
    --adapter that was trained from a file; that alone without --ship-from."""
    adapter, path = options.adapter, options.ship_from
    assert adapter is not None
    adapter = adapter_home(adapter)
    if file_facts(adapter):
        raise InputError(
            f"{adapter} is the change of a GGUF file (--ship-from), no adapter of the base",
            "train on from the adapter that it began with",
        )
    if path is None:
        return
    manifest = store.read_manifest(path)
    of_others = manifest and ("weights" in manifest.options or "adapter 2" in manifest.parents)
    identity = store.identity(adapter)
    if manifest is None or of_others or manifest.parents.get("adapter") != identity:
        raise InputError(
            f"{path} was not exported from {adapter}",
            f"edgeft merge-export --adapter {adapter} --quant gptq-q4_0",
        )
    if manifest.parents.get("base") != store.identity(options.base):
        raise InputError(f"{path} was exported with another base than {options.base}", "--base")
    store.check_files(path)
    assert options.ship and base
    check_file(path, base, options.ship)


def load_adapter(model: Any, adapter: Path, base: Path) -> None:
    """Give the adapter's weights to peft's `model`, which may have a larger rank and another alpha: the change of
    the weights is the adapter's. InputError where the two differ in another shape."""
    import peft
    from safetensors.torch import load_file

    if not hasattr(model, "peft_config"):
        raise InputError(
            f"{adapter}: this method trains no adapter of peft", "a method such as lora, or --base"
        )
    config, folder = open_adapter(adapter, base)
    own = model.peft_config["default"].to_dict()
    for key, default in SAME.items():
        has, trains = config.get(key, default), getattr(own[key], "value", own[key])
        if has != trains:
            raise InputError(
                f"{adapter} has {key} {has}, the method {trains}", "the method that trained it"
            )
    state = load_file(folder / WEIGHTS)
    fresh = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    for name in sorted(state.keys() ^ fresh.keys()):
        owner = "the adapter" if name in state else "the method"
        raise InputError(
            f"{adapter}: only {owner} has {name}",
            "--target-modules of the adapter's training",
        )
    if config["peft_type"] == "LORA":
        factor = scaling(adapter, config, "", None) / scaling(adapter, own, "", None)
        has, trains = (_shape(of) for of in (config, own))
        if has != trains:
            say(f"{adapter}: from {has} to {trains}, with the same change of the weights")
        state = {name: _widened(name, state[name], fresh[name], factor) for name in fresh}
    for name, weight in fresh.items():
        if weight.shape != state[name].shape:
            shapes = f"{tuple(state[name].shape)}, not {tuple(weight.shape)}"
            raise InputError(f"{adapter}: {name} is {shapes}", "the options of its training")
    peft.set_peft_model_state_dict(model, state)


def _shape(config: dict[str, Any]) -> str:
    rank, alpha = (config.get(key, DEFAULT_RANK) for key in ("r", "lora_alpha"))
    return f"rank {rank:g} and alpha {alpha:g}"


def _widened(name: str, weight: Any, fresh: Any, factor: float) -> Any:
    """A matrix of the adapter at the rank of `fresh`, which the model has drawn for it; others as they are.

    A gets further rows of `fresh`, and B, times `factor`, further columns: the product of these is zero, since peft
    draws one of the two and leaves the other zero.
    """
    import torch

    if "lora_A" in name or "lora_embedding_A" in name:
        return torch.cat([weight, fresh[len(weight) :].to(weight.dtype)])
    if "lora_B" in name or "lora_embedding_B" in name:
        return torch.cat([weight.float() * factor, fresh[:, weight.shape[1] :].float()], 1)
    return weight
