"""A run on this machine -> the memory and disk that it needs, and the nearest options that fit.

    request = Request(base, options, QLORA, Batch(8, 60, 120))
    request.needed, request.nearest_fit()

`edgeft plan` and the check before a run take the same sum.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft import machine
from edgeft.errors import MissingExtra, ResourceError
from edgeft.train.memory.activations import Batch
from edgeft.train.memory.base_model import BaseModel
from edgeft.train.memory.peak import Memory, estimate, optimizer_state_bytes
from edgeft.train.memory.trained import Trains, trained_counts, trained_weights
from edgeft.train.options import NOT_WITH_SHIP, TrainOptions


@dataclass(frozen=True)
class Request:
    """A run whose memory is asked for, on this machine."""

    base: BaseModel
    options: TrainOptions
    trains: Trains
    batch: Batch

    @property
    def memory(self) -> Memory:
        value_bytes = 2 if self.options.compute_type == "bf16" else 4
        return estimate(self.base, self.options, self.trains, self.batch, value_bytes)

    @property
    def needed(self) -> int:
        """Bytes of memory that must be free. With a GPU, its memory is not counted here."""
        memory = self.memory
        on_gpu = memory.libraries + memory.base + memory.offloaded
        return on_gpu if has_gpu() else memory.needed

    @property
    def checkpoint_bytes(self) -> int:
        """Size of one checkpoint: float32 weights that train, or the whole model, and the optimizer."""
        beside, of_base = trained_counts(self.base, self.options, self.trains)
        model = self.base.weights if of_base else beside
        return int(4 * model + optimizer_state_bytes(self.options) * (beside + of_base))

    @property
    def result_bytes(self) -> int:
        """Size of the result: float32 weights that train, or the whole model."""
        return 4 * (self.base.weights if self.trains.base == "all" else self.trained)

    @property
    def offloaded_bytes(self) -> int:
        """Size of the files with weights and activations during the run."""
        return self.memory.offloaded + self.memory.mapped

    @property
    def trained(self) -> int:
        """How many values train."""
        return trained_weights(self.base, self.options, self.trains)

    def largest_micro_batch(self, free: int | None = None) -> int:
        """The largest divisor of --batch-size whose memory is free, 1 where none is."""
        free = machine.available_memory() if free is None else free
        sizes = [
            n for n in range(1, self.options.batch_size + 1) if self.options.batch_size % n == 0
        ]
        fitting = [n for n in sizes if self.of(n).needed <= free]
        return max(fitting, default=1)

    def of(self, examples: int) -> Request:
        """The same run with micro-batches of so many examples."""
        options = dataclasses.replace(self.options, micro_batch_size=examples)
        return dataclasses.replace(self, options=options, batch=self.batch.of(examples))

    def nearest_fit(self, free: int | None = None) -> str:
        """The fewest changes of options with which the run fits; "" where none is enough.

        Fewer examples in a forward pass cost least time, then checkpointed activations, then a base
        that stays packed, then activations and frozen weights in files.
        """
        free = machine.available_memory() if free is None else free
        for names in self._savings():
            changes: dict[str, Any] = {
                name: True for name in names if not getattr(self.options, name)
            }
            changed = dataclasses.replace(
                self, options=dataclasses.replace(self.options, **changes)
            )
            for examples in range(self.batch.examples, 0, -1):
                if self.options.batch_size % examples or changed.of(examples).needed > free:
                    continue
                flags = [f"--{name.replace('_', '-')}" for name in changes]
                if examples != self.batch.examples:
                    flags.insert(0, f"--micro-batch-size {examples}")
                return " ".join(flags)
        return ""

    def _savings(self) -> Iterator[list[str]]:
        """Options that save memory and cost time, the cheapest first, as far as they go together."""
        options = self.options
        packs = self.trains.quantized and options.quantization != "int8"
        maps = self.trains.maps and not self.base.card.fused and not has_gpu()
        names = ["offload_weights"] * (maps and not options.keep_4bit)
        names += ["offload_activations"]
        names += ["keep_4bit"] * (packs and not options.offload_weights)
        names += ["checkpoint_activations"]
        if options.ship:
            names = [name for name in names if name not in NOT_WITH_SHIP]
        for chosen in itertools.product((False, True), repeat=len(names)):
            saving = list(itertools.compress(names, chosen))
            if not {"offload_weights", "keep_4bit"} <= {*saving}:
                yield saving


def has_gpu() -> bool:
    """Whether the driver of an Nvidia GPU is loaded; torch is not imported for it."""
    return Path("/proc/driver/nvidia/version").exists()


def check_attention(options: TrainOptions) -> None:
    """ResourceError or MissingExtra for --attention flash_attention_2 where it cannot run."""
    if options.attention != "flash_attention_2":
        return
    if not has_gpu():
        raise ResourceError("--attention flash_attention_2 needs a GPU", "--attention sdpa")
    if importlib.util.find_spec("flash_attn") is None:
        raise MissingExtra("flash-attn is not installed", "pip install flash-attn")
