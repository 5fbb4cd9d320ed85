"""QLoRA (arXiv 2305.14314): LoRA matrices on a base that is frozen in NF4, FP4 or int8.

The result is an adapter in peft's format. Its facts say which base values it was trained on.
"""

# Imported only when a run starts, after the check for the extra.
# ruff: noqa: TID253

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from edgeft.models import Card
from edgeft.progress import say
from edgeft.quantization import nf4
from edgeft.train.methods.base_model import check_packing, dtype_name, frozen_base, round_trip
from edgeft.train.methods.lora import LoRA
from edgeft.train.methods.mapped_base import mapped_base
from edgeft.train.options import TrainOptions


class QLoRA(LoRA):
    """LoRA on a base that is frozen at its quantized values."""

    def __init__(self, options: TrainOptions, card: Card) -> None:
        check_packing(options)
        super().__init__(options, card)

    def base(self, device: str) -> Any:
        options = self.options
        kind = {"nf4": "NF4", "fp4": "FP4", "int8": "int8"}[options.quantization]
        say(f"base in {kind}, {'kept in 4 bits' if options.keep_4bit else 'dequantized once'}, "
            f"computing in {dtype_name(self.dtype)} on {device}")  # fmt: skip
        if options.offload_weights:
            return mapped_base(options, self.card, self.dtype, partial(round_trip, options))
        return frozen_base(options, self.card, self.dtype, device)

    def facts(self) -> dict[str, Any]:
        """What `edgeft.merge.base_weights` needs to compute the same base values again."""
        options, compute_type = self.options, dtype_name(self.dtype)
        blocks = {"block": nf4.BLOCK, "double_quant": options.double_quant}
        return {
            "compute_type": compute_type,
            "nf4": {
                "kind": options.quantization,
                **({} if options.quantization == "int8" else blocks),
                "compute_type": compute_type,
                "threads": torch.get_num_threads() if options.keep_4bit else 1,
            },
        }
