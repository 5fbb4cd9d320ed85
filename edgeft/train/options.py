"""Options of a training run."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from edgeft.errors import InputError


@dataclass(frozen=True)
class TrainOptions:
    base: Path
    """Hugging Face folder of the base model"""
    data: Path
    """alpaca, messages or sharegpt; JSON or JSONL"""
    output: Path
    """folder of the adapter"""
    validation_data: Path | None = None
    """a file of its own; otherwise validation_size is split off data"""
    validation_size: float = 0.05
    """share of the examples below 1, a count from 1, 0 for none"""
    epochs: float = 1.0
    """passes over the training examples, unless steps is given"""
    steps: int | None = None
    """optimizer steps"""
    batch_size: int = 8
    """examples per optimizer step"""
    micro_batch_size: int = 8
    """examples per forward pass; gradients are accumulated up to batch_size"""
    learning_rate: float = 1e-3
    """peak, after the warm-up and before the cosine decay"""
    warmup: float = 0.05
    """share of the steps"""
    cutoff_length: int = 512
    """tokens; longer examples are left out and counted"""
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    target_modules: tuple[str, ...] = ()
    """module names; empty = the model card's (every linear layer of a block)"""
    train_on_inputs: bool = False
    """learn the prompt's tokens too, not only the answer's"""
    group_by_length: bool = True
    """batches of similar length, less padding"""
    compute_type: Literal["auto", "fp32", "bf16"] = "auto"
    """auto measures which is faster"""
    keep_4bit: bool = False
    """keep the base packed in 4 bits (bitsandbytes): least memory, slower"""
    seed: int = 0
    eval_every: int = 0
    """steps between points of the validation curve; 0 = five points"""
    save_every: int = 50
    """steps between checkpoints; 0 = none"""

    def __post_init__(self) -> None:
        if self.batch_size % self.micro_batch_size:
            raise InputError(
                f"--batch-size {self.batch_size} is no multiple of "
                f"--micro-batch-size {self.micro_batch_size}"
            )
        if self.steps is not None and self.steps < 1 or not 0 < self.epochs < math.inf:
            raise InputError("--steps and --epochs must be positive")
        if not 0 <= self.validation_size < math.inf:
            raise InputError(f"--validation-size {self.validation_size} is no share and no count")

    def to_json(self) -> dict[str, Any]:
        raw = {k: str(v) if isinstance(v, Path) else v for k, v in vars(self).items()}
        return cast(dict[str, Any], json.loads(json.dumps(raw)))
