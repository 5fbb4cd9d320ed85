"""Trainings with --ship: the values that their layers computed with at the end."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft import store
from edgeft.train.options import TrainOptions
from edgeft.train.run import train
from helpers.interrupting import interrupted_at

Values = dict[str, np.ndarray]


def train_watched(options: TrainOptions, embedding: bool = False) -> Values:
    """Train; the last values of each layer with LoRA, and of the embedding, by the checkpoint's names."""
    from edgeft.train.ship.weights import ShipWeights

    values: Values = {}
    facts = ShipWeights.facts

    def watched(self: ShipWeights) -> dict[str, Any]:
        values.update({layer.name: layer.values.numpy().copy() for layer in self.layers})
        if embedding:
            weight = self._model.get_input_embeddings().weight
            values["model.embed_tokens.weight"] = weight.detach().numpy().copy()
        return facts(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShipWeights, "facts", watched)
        train(options)
    return values


def move_on(model: Any, ship: Any) -> Any:
    """Halve every B of the layers of `ship`, as a training might; the model from before, with weights that are not
    rounded."""
    before = copy.deepcopy(model)
    for module in before.modules():
        module.__dict__.pop("ship_weight", None)
    for layer in ship.layers:
        layer.module.lora_B["default"].weight.data.mul_(0.5)
    ship.update(exact=True)
    return before


def check_resumed(options: TrainOptions, output: Path) -> None:
    """A run of these options that is interrupted after 3 steps and resumed has the bytes of the whole one."""
    again = dataclasses.replace(options, output=output)
    with interrupted_at(3):
        train(again)
    resumed = train(again, resume=True)
    whole = store.read_manifest(options.output)
    assert whole is not None and resumed.facts["ship"] == whole.facts["ship"]
    assert resumed.files == whole.files
