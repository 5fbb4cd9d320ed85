"""Merged view -> transformers' configuration and an empty module tree of the merged model."""

from __future__ import annotations

from typing import Any

from edgeft import models
from edgeft.errors import require
from edgeft.merge.view import Merged
from edgeft.models import chatglm
from edgeft.tokenizer.training_settings import config_overrides


def config_of(merged: Merged) -> Any:
    """transformers' configuration of the merged model."""
    require("transformers", "gptq")
    if merged.card.family == chatglm.FAMILY:
        return chatglm.glm_config(merged.config)
    return models.transformers_config(merged.config | config_overrides(merged.base))


def skeleton(merged: Merged) -> Any:
    """The model on the meta device: parameters have names and shapes, but no values."""
    accelerate = require("accelerate", "gptq")
    config = config_of(merged)
    architecture = models.transformers_class({"architectures": config.architectures})
    with accelerate.init_empty_weights(include_buffers=False):
        return architecture._from_config(
            config, dtype="float32", experts_implementation="eager"
        ).eval()
