"""What a user chooses for a training run -> one frozen, checked record, and its JSON."""

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
    """a separate file; without it validation_size is split off data"""
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
    """share of the steps during which the learning rate rises"""
    cutoff_length: int = 512
    """tokens; longer examples are left out and counted"""
    lora_r: int = 16
    """rank of the LoRA matrices"""
    lora_alpha: int = 32
    """the LoRA delta is scaled by lora_alpha / lora_r"""
    lora_dropout: float = 0.0
    """share of the inputs of the LoRA matrices that is dropped in training"""
    target_modules: tuple[str, ...] = ()
    """module names; empty = the model card's (every linear layer of a block)"""
    train_on_inputs: bool = False
    """learn the tokens of the prompt, too"""
    group_by_length: bool = True
    """batches of similar length, less padding"""
    compute_type: Literal["auto", "fp32", "bf16"] = "auto"
    """type of activations and unpacked weights; auto measures which is faster"""
    keep_4bit: bool = False
    """keep the base packed in 4 bits (bitsandbytes): least memory, slower"""
    seed: int = 0
    """of the split, the first LoRA weights, the order of examples and dropout"""
    eval_every: int = 0
    """steps between points of the validation curve; 0 = five points"""
    save_every: int = 50
    """steps between checkpoints; 0 = none"""

    def __post_init__(self) -> None:
        """InputError for values that contradict each other."""
        if self.batch_size % self.micro_batch_size:
            raise InputError(
                f"--batch-size {self.batch_size} is no multiple of "
                f"--micro-batch-size {self.micro_batch_size}"
            )
        if self.steps is not None and self.steps < 1 or not 0 < self.epochs < math.inf:
            raise InputError("--steps and --epochs must be positive")
        if not 0 <= self.validation_size < math.inf:
            raise InputError(f"--validation-size {self.validation_size} is no share and no count")

    def total_steps(self, examples: int) -> int:
        """Optimizer steps of a run over so many training examples."""
        return self.steps or math.ceil(self.epochs * math.ceil(examples / self.batch_size))

    def to_json(self) -> dict[str, Any]:
        """Every field, paths as text and tuples as lists, as the manifest keeps them."""
        raw = {k: str(v) if isinstance(v, Path) else v for k, v in vars(self).items()}
        return cast(dict[str, Any], json.loads(json.dumps(raw)))
