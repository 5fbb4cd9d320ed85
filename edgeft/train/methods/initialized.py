"""PiSSA (arXiv 2404.02948) and OLoRA (arXiv 2406.01775): LoRA that begins as a part of each weight.

PiSSA begins with the largest singular values and vectors of a weight, OLoRA with the orthonormal part
of its QR decomposition. peft takes that part off the base, so B·A of the start changes nothing. The
result is the difference to the start, a plain LoRA of twice the rank on the base as it is stored.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from edgeft.errors import InputError
from edgeft.models import Card
from edgeft.progress import say
from edgeft.train.methods.base_model import outline
from edgeft.train.methods.lora import LoRA
from edgeft.train.methods.peft_method import save_adapter
from edgeft.train.options import TrainOptions
from edgeft.train.targets import is_target


class InitializedLoRA(LoRA):
    """LoRA whose start is a part of the base."""

    init: str
    """peft's `init_lora_weights`"""

    def __init__(self, options: TrainOptions, card: Card) -> None:
        super().__init__(options, card)
        small = sorted({
            name.rpartition(".")[2]
            for name, module in outline(options.base).named_modules()
            if is_target(name, self.targets) and min(module.weight.shape) < options.lora_r
        })  # fmt: skip
        if not small:
            return
        if options.target_modules:
            raise InputError(
                f"{', '.join(small)} has fewer than {options.lora_r} rows or columns",
                "a smaller --lora-r, or other --target-modules",
            )
        say(f"left out {', '.join(small)}: fewer rows or columns than --lora-r")
        self.targets = [target for target in self.targets if target not in small]

    def config(self) -> Any:
        config = super().config()
        config.init_lora_weights = self.init
        return config

    def prepare(self, device: str) -> Any:
        """peft's model. A resumed run computes the same start again."""
        model = super().prepare(device)
        self._start = tempfile.TemporaryDirectory(prefix="edgeft-start-")
        # peft subtracts a start that it must not initialize anew when it loads it.
        config = model.peft_config["default"]
        config.init_lora_weights = True
        super().save(model, Path(self._start.name))
        config.init_lora_weights = self.init
        return model

    def save(self, model: Any, folder: Path) -> None:
        """The difference to the start."""
        save_adapter(model, folder, path_initial_model_for_weight_conversion=self._start.name)
        self._start.cleanup()


class PiSSA(InitializedLoRA):
    init = "pissa"


class OLoRA(InitializedLoRA):
    init = "olora"
