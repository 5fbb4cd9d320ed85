"""Full fine-tuning: every weight of the base trains, and the result is a new base folder.

The weights are float32, in training and in the folder. The folder has the base's tokenizer and
everything that `--base` needs; its manifest names the base and the data.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from edgeft.adapter.tokenizer import tokenizer_files
from edgeft.models import Card
from edgeft.progress import say
from edgeft.train.methods.base_model import compute_dtype, dtype_name, trainable_base
from edgeft.train.options import TrainOptions
from edgeft.train.protocol import Method


class Full(Method):
    """Every weight of the base, in float32."""

    def __init__(self, options: TrainOptions, card: Card) -> None:
        self.options, self.card = options, card

    def prepare(self, device: str) -> Any:
        self.dtype = compute_dtype(self.options, device)
        say(f"training every weight, computing in {dtype_name(self.dtype)} on {device}")
        model = trainable_base(self.options, self.dtype, device)
        return model.requires_grad_(True)

    def facts(self) -> dict[str, Any]:
        return {"compute_type": dtype_name(self.dtype), "trained": "every weight"}

    def save(self, model: Any, folder: Path) -> None:
        """config.json, the weights, and the base's tokenizer and generation settings."""
        model.save_pretrained(str(folder))
        (folder / "generation_config.json").unlink(missing_ok=True)  # the base's own is copied
        for name in tokenizer_files(self.options.base):
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(self.options.base / name, folder / name)
