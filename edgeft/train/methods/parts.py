"""Some weights of the base train, the others are frozen: LN tuning, BitFit, freeze.

The result is an adapter in peft's format of LN tuning, which replaces whole weights: a module's under
`ln_tuning_layers`, experts' under their own names. peft loads it, and the merge replaces the weights.
"""

# Imported only when a run starts, after the check for the extra.
# ruff: noqa: TID253

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import safetensors.torch

from edgeft.adapter.names import PREFIX
from edgeft.errors import InputError
from edgeft.models import Card, generalize
from edgeft.progress import say
from edgeft.train.methods.base_model import (
    compute_dtype,
    dtype_name,
    outline,
    target_modules,
    trainable_base,
)
from edgeft.train.options import TrainOptions
from edgeft.train.protocol import Method
from edgeft.train.targets import is_target


class PartMethod(Method):
    """Trains whole weights of the base, in float32."""

    what: str
    """what trains, for messages"""

    def __init__(self, options: TrainOptions, card: Card) -> None:
        self.options, self.card = options, card
        model = outline(options.base)
        self.tied = _tied_head(model)
        self.layers = int(model.config.num_hidden_layers)
        targets = target_modules(model, options.target_modules, ())
        chosen = [name for name, _ in model.named_parameters() if self._mapped(name)]
        if targets:
            chosen = [name for name in chosen if is_target(name.rpartition(".")[0], targets)]
        self.trained = self.choose(chosen)
        if not any(_wrapped(name) for name in self.trained):
            among = "the chosen modules have" if targets else f"the {card.family} family has"
            raise InputError(f"{among} no {self.what} to train", "another --method, such as lora")

    def choose(self, names: list[str]) -> list[str]:
        """The parameters that train, of those in the chosen modules."""
        raise NotImplementedError

    def prepare(self, device: str) -> Any:
        """transformers' model with the chosen weights trainable."""
        self.dtype = compute_dtype(self.options, device)
        say(f"training the {self.what}, {len(self.trained)} tensors, "
            f"computing in {dtype_name(self.dtype)} on {device}")  # fmt: skip
        model = trainable_base(self.options, self.dtype, device)
        for name in self.trained:
            model.get_parameter(name).requires_grad_(True)
        return model

    def facts(self) -> dict[str, Any]:
        return {"compute_type": dtype_name(self.dtype), "trained": self.what}

    def save(self, model: Any, folder: Path) -> None:
        """adapter_config.json and adapter_model.safetensors with the trained weights."""
        tensors, modules = {}, set()
        for name in self.trained:
            values = model.get_parameter(name).detach().cpu()
            module, _, leaf = name.rpartition(".")
            places = [module, *([self.tied[1]] if module == self.tied[0] else [])]
            if not _wrapped(name):
                tensors[PREFIX + name] = values
                continue
            for place in places:  # an embedding that is the head, too, is both
                tensors[f"{PREFIX}{place}.ln_tuning_layers.{leaf}"] = values.clone()
                modules.add(place)
        config = peft.LNTuningConfig(
            target_modules=_short_names(model, modules),
            task_type="CAUSAL_LM",
            base_model_name_or_path=str(self.options.base),
            inference_mode=True,
        )
        config.save_pretrained(str(folder))
        safetensors.torch.save_file(
            tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"}
        )

    def _mapped(self, name: str) -> bool:
        """Whether the card knows the weight, so that it can be exported."""
        stored = self.card.in_checkpoint(name)
        general, _ = generalize(name)
        return general in self.card.fused or bool(self.card.gguf_names(stored)[0])

    def is_norm(self, name: str) -> bool:
        """Whether a parameter is of a norm."""
        gguf_names, _ = self.card.gguf_names(self.card.in_checkpoint(name))
        return any(gguf_name.split(".")[-2].endswith("_norm") for gguf_name in gguf_names)


class LNTuning(PartMethod):
    """LN tuning (arXiv 2312.11420): the norms."""

    what = "norms"

    def choose(self, names: list[str]) -> list[str]:
        return [name for name in names if self.is_norm(name)]


class BitFit(PartMethod):
    """BitFit (arXiv 2106.10199): the biases, or the norms of a base without biases.

    A bias that the base lacks is not added: transformers has no place for it in most families.
    """

    what = "biases"

    def choose(self, names: list[str]) -> list[str]:
        biases = [name for name in names if name.endswith(".bias")]
        if biases:
            return biases
        self.what = "norms"
        say(f"{self.options.base.name} has no biases: its norms are trained instead")
        return [name for name in names if self.is_norm(name)]


class Freeze(PartMethod):
    """The last layers, or the first; with `target_modules` those modules of them."""

    what = "layers"

    def choose(self, names: list[str]) -> list[str]:
        count = self.options.freeze_trainable_layers
        if not count:
            if not self.options.target_modules:
                raise InputError(
                    "--freeze-trainable-layers 0 trains everything",
                    "--method full, or --target-modules",
                )
            self.what = "chosen modules"
            return names
        layers = {name: _layer(name) for name in names}
        total = self.layers
        if abs(count) > total:
            raise InputError(f"the base has {total} layers", f"--freeze-trainable-layers {total}")
        chosen = range(total - count, total) if count > 0 else range(-count)
        self.what = f"layers {chosen[0]} to {chosen[-1]}"
        return [name for name in names if layers[name] in chosen]


def _layer(name: str) -> int | None:
    """The layer of a parameter, None for one outside of the layers."""
    general, numbers = generalize(name)
    return numbers[0] if "{i}" in general else None


def _wrapped(name: str) -> bool:
    """Whether peft can replace the parameter with its module; experts are one 3-D parameter."""
    return name.rpartition(".")[2] in ("weight", "bias")


def _tied_head(model: Any) -> tuple[str, str]:
    """Names of embedding and head where they share a weight, else ("", "")."""
    if not model.config.tie_word_embeddings:
        return "", ""
    names = {module: name for name, module in model.named_modules()}
    return names[model.get_input_embeddings()], names[model.get_output_embeddings()]


def _short_names(model: Any, modules: set[str]) -> list[str]:
    """Last parts of the modules' names where they name no other module, else the names."""
    leaves = sorted({module.rpartition(".")[2] for module in modules})
    same = {name for name, _ in model.named_modules() if is_target(name, leaves)}
    return leaves if same == modules else sorted(modules)
