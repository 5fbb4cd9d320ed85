"""Base model + a configuration of peft -> peft's model, and its adapter on disk.

What all methods share that peft has: the base as it is stored, the modules that are adapted, and the
adapter's files. A method adds its configuration.
"""

# Imported only when a run starts, after the check for the extra.
# ruff: noqa: TID253

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import transformers

from edgeft.files import read_json
from edgeft.models import Card
from edgeft.progress import say
from edgeft.train import new_tokens
from edgeft.train.methods.base_model import (
    compute_dtype,
    dtype_name,
    outline,
    stored_base,
    target_modules,
)
from edgeft.train.methods.mapped_base import check_mapping, mapped_base
from edgeft.train.options import TrainOptions
from edgeft.train.protocol import Method


class PeftMethod(Method):
    """Weights that peft adds to a frozen base."""

    def __init__(self, options: TrainOptions, card: Card) -> None:
        self.options, self.card = options, card
        check_mapping(options, card)
        self.targets = target_modules(
            outline(options.base), options.target_modules, self.default_targets()
        )

    def default_targets(self) -> Sequence[str]:
        """Names of the modules that are adapted where the user names none."""
        return self.card.lora_targets

    def config(self) -> Any:
        """peft's configuration."""
        raise NotImplementedError

    def base(self, device: str) -> Any:
        """The frozen base on `device`, computing in `self.dtype`."""
        say(f"base as it is stored, computing in {dtype_name(self.dtype)} on {device}")
        if self.options.offload_weights:
            return mapped_base(self.options, self.card, self.dtype)
        return stored_base(self.options.base, self.dtype, device)

    def prepare(self, device: str) -> Any:
        """peft's model. The weights that it adds depend on the seed, not on how the base loads."""
        self.dtype = compute_dtype(self.options, device)
        base = self.base(device)
        rows = base.get_input_embeddings().weight.shape[0]
        ids = new_tokens.add_rows(base, self.options)
        self.trained_rows = new_tokens.trained_rows(base, ids)
        self.grown = base.get_input_embeddings().weight.shape[0] > rows
        transformers.set_seed(self.options.seed)
        return peft.get_peft_model(base, self.config())

    def facts(self) -> dict[str, Any]:
        return {"compute_type": dtype_name(self.dtype)}

    def save(self, model: Any, folder: Path) -> None:
        """adapter_config.json and adapter_model.safetensors, without peft's model card."""
        save_adapter(model, folder, save_embedding_layers=self.grown)


def save_adapter(
    model: Any, folder: Path, save_embedding_layers: bool = False, **more: Any
) -> None:
    """peft's two files, the same bytes for the same adapter; `more` goes to `save_pretrained`."""
    model.save_pretrained(
        str(folder),
        save_embedding_layers=save_embedding_layers,
        selected_adapters=["default"],  # an objective may add a frozen copy as its reference
        **more,
    )
    (folder / "README.md").unlink(missing_ok=True)
    file = folder / "adapter_config.json"
    config = read_json(file)
    for key, value in config.items():
        if isinstance(value, list):  # peft writes sets, whose order changes from run to run
            config[key] = sorted(value)
    file.write_text(json.dumps(config, indent=2, sort_keys=True))
