"""The options of a training run. The string after a field is the help of its option."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from edgeft.errors import InputError

FIRST_FIELDS = frozenset((
    "base", "data", "output", "validation_data", "validation_size", "epochs", "steps", "batch_size",
    "micro_batch_size", "learning_rate", "warmup", "cutoff_length", "lora_r", "lora_alpha",
    "lora_dropout", "target_modules", "train_on_inputs", "group_by_length", "compute_type",
    "keep_4bit", "seed", "eval_every", "save_every",
))  # fmt: skip
"""fields of edgeft 0.1.0, which every manifest names"""


@dataclass(frozen=True)
class TrainOptions:
    """What is trained, on what and how: the options of `edgeft train`."""

    base: Path
    """Base model: a Hugging Face folder; on the command line also a .gguf, a hub id or an embedded base
    such as smollm2-135m."""
    data: Path
    """Chats to learn, in the shape of alpaca, chat messages, sharegpt, or prompt and completion: JSON,
    JSONL, CSV or Parquet."""
    output: Path
    """Folder of the adapter, or of the model where the method trains all of it."""
    validation_data: Path | None = None
    """File of chats for validation. Without one, --validation-size is split off --data."""
    validation_size: float = 0.05
    """Part of --data that is held out for validation: a share below 1, a count from 1, 0 = none."""
    bad_rows: Literal["stop", "skip"] = "stop"
    """What a row that cannot be learned does: stop = the run ends with an error that lists the first ten,
    skip = it is left out and counted."""
    epochs: float = 1.0
    """Passes over the training examples, unless --steps is given."""
    steps: int | None = None
    """Optimizer steps."""
    batch_size: int = 8
    """Examples per optimizer step."""
    micro_batch_size: int | Literal["auto"] = 8
    """Examples per forward pass; gradients are accumulated up to --batch-size. auto = the largest that
    fits the free memory, halved where memory runs out all the same."""
    learning_rate: float = 1e-3
    """Peak of the learning rate, after the warm-up and before the cosine decay."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises."""
    cutoff_length: int = 512
    """Tokens of an example at most; longer ones are left out and counted."""
    lora_r: int = 16
    """Rank of the LoRA matrices."""
    lora_alpha: int = 32
    """LoRA's scale is alpha / r."""
    lora_dropout: float = 0.0
    """Share of LoRA's inputs that is dropped."""
    target_modules: tuple[str, ...] = ()
    """Modules that train: names, comma-separated, all-linear (every linear layer but the head), or a
    regular expression for a module's whole name. Default: the model card's for the method, for LoRA
    every linear layer of a block."""
    use_rslora: bool = False
    """rsLoRA: LoRA's scale is alpha / sqrt(r)."""
    use_dora: bool = False
    """DoRA: also learn the length of each row of a weight, apart from its direction."""
    lora_plus_ratio: float | None = None
    """LoRA+: learning rate of the matrices B over that of A. 1 = the same."""
    quantization: Literal["nf4", "fp4", "int8"] = "nf4"
    """Values at which QLoRA freezes the base's linear layers."""
    double_quant: bool = True
    """Quantize the scales of nf4 and fp4, too."""
    freeze_trainable_layers: int = 2
    """Layers that --method freeze trains: the last n, the first n where it is negative, 0 = all."""
    train_on_inputs: bool = False
    """Learn the prompt's tokens too, not only the answer's."""
    group_by_length: bool = True
    """Make batches of examples of similar length: less padding."""
    shared_prefix: bool = True
    """Compute the common beginning of a micro-batch's examples, such as a system prompt, once."""
    compute_type: Literal["auto", "fp32", "bf16"] = "auto"
    """Type of the computation; auto measures which is faster here."""
    keep_4bit: bool = False
    """Keep QLoRA's base packed in 4 bits (bitsandbytes): least memory, slower on a CPU."""
    threads: str = "all"
    """CPU threads: a number, all cores, or auto = measured at the start and whenever the steps become slow,
    for a machine that others use. The number decides the last bits of the result."""
    checkpoint_activations: bool = False
    """Keep only the inputs of each block and compute the rest again in the backward pass: a fraction of
    the memory for activations, about 1.4 times the time."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Implementation of attention, by transformers' names; auto = transformers' choice for the model.
    flash_attention_2 needs a GPU and the package flash-attn."""
    seed: int = 0
    """Seed of the split, the order and the initialization."""
    eval_every: int = 0
    """Steps between points of the validation curve; 0 = five points, fewer where they would take more than
    a tenth of the time."""
    save_every: int = 50
    """Steps between checkpoints; 0 = none."""

    def __post_init__(self) -> None:
        """InputError for values that contradict each other."""
        if self.micro_batch_size != "auto" and self.batch_size % self.micro_batch_size:
            raise InputError(
                f"--batch-size {self.batch_size} is no multiple of "
                f"--micro-batch-size {self.micro_batch_size}"
            )
        if self.steps is not None and self.steps < 1 or not 0 < self.epochs < math.inf:
            raise InputError("--steps and --epochs must be positive")
        if (
            self.threads not in ("all", "auto")
            and not self.threads.isdecimal()
            or self.threads == "0"
        ):
            raise InputError(f"--threads {self.threads} is no number, nor all or auto")
        if not 0 <= self.validation_size < math.inf:
            raise InputError(f"--validation-size {self.validation_size} is no share and no count")
        if self.lora_plus_ratio is not None and not 0 < self.lora_plus_ratio < math.inf:
            raise InputError(f"--lora-plus-ratio {self.lora_plus_ratio} is not positive")

    def total_steps(self, examples: int) -> int:
        """Optimizer steps of a run over so many training examples."""
        return self.steps or math.ceil(self.epochs * math.ceil(examples / self.batch_size))

    def to_json(self) -> dict[str, Any]:
        """Fields as the manifest keeps them, paths as text and tuples as lists.

        A field that is younger than FIRST_FIELDS is left out at its default: adapters from before there
        was a choice stay complete.
        """
        raw = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name in FIRST_FIELDS or getattr(self, field.name) != field.default
        }
        texts = {k: str(v) if isinstance(v, Path) else v for k, v in raw.items()}
        return cast(dict[str, Any], json.loads(json.dumps(texts)))
