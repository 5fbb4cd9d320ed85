"""Base + options + what trains + a batch -> bytes of a run's memory at its peak, part by part.

    memory = estimate(base, options, QLORA, Batch(8, 60, 120))
    memory.peak, memory.activations

On a CPU the activations include what the heap of glibc leaves unused.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from edgeft.train.memory.activations import Batch, activation_bytes, heap_holes
from edgeft.train.memory.base_model import BaseModel
from edgeft.train.memory.trained import Trains, target_linears, trained_counts
from edgeft.train.optimizers import optimizer_row
from edgeft.train.options import TrainOptions
from edgeft.train.ship.text_windows import TEXT_TOKENS

LIBRARY_BYTES = 575_000_000
"""resident memory of a run on a tiny model: Python, torch, transformers, peft, datasets"""
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""of a packed weight: 4 bits, a byte of scale for each 64, a float32 for each 256 of these"""


@dataclass(frozen=True)
class Memory:
    """Resident bytes of a training process at its peak."""

    libraries: int
    files: int
    """pages of the files with the weights, which the kernel drops where memory is short"""
    files_stay: bool
    """whether the files stay mapped after loading: a tensor of the model's type is used where it lies"""
    base: int
    """the base's weights as training holds them"""
    trained: int
    """weights that train and are not the base's"""
    gradients: int
    optimizer: int
    activations: int
    """what the forward pass keeps for the backward pass"""
    temporary: int
    """logits, and what a layer needs while it computes"""
    mapped: int = 0
    """of `base`, with --offload-weights: mapped from a file, so that the kernel can drop it"""
    offloaded: int = 0
    """activations in a file, with --offload-activations"""

    @property
    def peak(self) -> int:
        """Largest resident set, as VmHWM in /proc/self/status and `time -v` report it."""
        if self.files_stay:
            return self.needed + self.mapped + self.files
        return max(self.needed + self.mapped, self.libraries + self.base + self.files)

    @property
    def needed(self) -> int:
        """Bytes that must be free: without pages that the kernel can drop."""
        return (self.libraries + self.base + self.trained + self.gradients + self.optimizer
                + self.activations + self.temporary - self.mapped)  # fmt: skip

    def to_json(self) -> dict[str, int]:
        return dataclasses.asdict(self) | {"peak": self.peak, "needed": self.needed}


def estimate(
    base: BaseModel,
    options: TrainOptions,
    trains: Trains,
    batch: Batch,
    value_bytes: int = 4,
    device: str = "cpu",
) -> Memory:
    """The memory of a run.

    `value_bytes`: 4 where it computes in float32, 2 in bfloat16.
    """
    if options.use_dora and trains.beside == "lora":
        trains = dataclasses.replace(trains, beside="dora")
    beside, of_base = trained_counts(base, options, trains)
    count = beside + of_base
    state = optimizer_state_bytes(options)
    held = value_bytes if not of_base else 4  # weights that train are held in float32
    weights = base.weights * held
    if trains.quantized and options.keep_4bit:
        packed = base.packed
        weights = int((base.weights - packed) * held + packed * NF4_BYTES)
    teaches = bool(options.ship_text or options.ship_distill)  # LoRA as it was stays, too
    if options.ship:  # beside each weight its value in the file, and what --ship-from replaced
        of_each = 8 if teaches and options.ship_from else 4
        weights += of_each * shipped_weights(base, options, trains)
    same_type = "F32" if held == 4 else "BF16"
    kept, temporary = activation_bytes(base, options, trains, batch, value_bytes)
    # Before the chats of a step; beside them the teacher's probabilities and their gradients.
    if options.ship_text:
        of_text = Batch(1, TEXT_TOKENS, TEXT_TOKENS)
        probabilities = 2 * TEXT_TOKENS * base.sizes.vocabulary * 4
        text = activation_bytes(base, options, trains, of_text, value_bytes)
        kept, temporary = max((kept, temporary), (text[0], text[1] + probabilities), key=sum)
    holes = heap_holes(base, options, trains, batch, value_bytes) if device == "cpu" else 0
    files = max(0, base.stored_bytes - base.stored_in.get(same_type, 0))
    offloads = options.offload_activations
    return Memory(
        libraries=LIBRARY_BYTES,
        files=0 if options.offload_weights else files,
        files_stay=same_type in base.stored_in,
        base=weights,
        trained=4 * beside * (2 if teaches else 1),
        gradients=0 if optimizer_row(options.optimizer).fused_backward else 4 * count,
        optimizer=int(state * count),
        activations=holes + (0 if offloads else kept),
        temporary=temporary,
        mapped=weights if options.offload_weights else 0,
        offloaded=kept if offloads else 0,
    )


def shipped_weights(base: BaseModel, options: TrainOptions, trains: Trains) -> int:
    """Weights that --ship holds twice: those of the layers with LoRA."""
    return sum(
        linear.rows * linear.columns
        for layer in range(base.sizes.layers)
        for linear in target_linears(base, options, trains, layer)
    )


def optimizer_state_bytes(options: TrainOptions) -> float:
    """Bytes of the optimizer's state for each weight that trains."""
    return optimizer_row(options.optimizer).state_bytes
