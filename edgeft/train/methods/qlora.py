"""QLoRA: the base frozen in 4 bits, LoRA matrices on its linear layers."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from edgeft import models
from edgeft.errors import InputError, require
from edgeft.quantization import nf4
from edgeft.train.options import TrainOptions
from edgeft.weights.checkpoint import Checkpoint


def frozen_base(
    torch: Any,
    transformers: Any,
    options: TrainOptions,
    card: models.Card,
    compute: Any,
    device: str,
) -> Any:
    """The base model in the compute type, with what the card names at its NF4 values.

    `edgeft.merge.base_weights` finds the same values again. The model is loaded in the compute type, not cast to
    it: a cast would round what transformers holds in float32, as the frequencies of the rotation.
    """
    if options.keep_4bit:
        require("bitsandbytes", "train")
        narrow = [
            f"{name} ({info.shape[1]} wide)"
            for name, info in Checkpoint(options.base).tensors.items()
            if card.in_4bit(name, info.shape) and info.shape[1] % nf4.BLOCK
        ]
        if narrow and device == "cpu":
            # bitsandbytes 0.50.2 gives wrong values there: its CPU kernel starts a block per row.
            raise InputError(
                f"--keep-4bit on a CPU needs widths that are multiples of {nf4.BLOCK}: {narrow[0]}",
                "leave --keep-4bit out",
            )
        with torch.device("meta"):
            outline = transformers.AutoModelForCausalLM.from_config(
                transformers.AutoConfig.from_pretrained(options.base)
            )
        packed = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            llm_int8_skip_modules=[
                name
                for name, module in outline.named_modules()
                if isinstance(module, torch.nn.Linear)
                and not _in_4bit(card, f"{name}.weight", module.weight)
            ],
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
        )
        model = transformers.AutoModelForCausalLM.from_pretrained(
            options.base,
            dtype=compute,
            use_safetensors=True,
            quantization_config=packed,
            device_map={"": device},
        )
        model.requires_grad_(False)
        for module in model.modules():
            # Without this bitsandbytes 0.50.2 repacks the weights at the first evaluation and
            # never back, and training goes on without the gradients that pass through them.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
        return model
    model = transformers.AutoModelForCausalLM.from_pretrained(
        options.base, dtype=compute, use_safetensors=True
    )
    model.requires_grad_(False)
    for name, weight in model.named_parameters():
        if _in_4bit(card, name, weight):
            weight.copy_(torch.from_numpy(nf4.round_trip(weight.float().numpy())))
    return model.to(device)


def _in_4bit(card: models.Card, name: str, weight: Any) -> bool:
    return card.in_4bit(card.in_checkpoint(name), tuple(weight.shape))


def target_modules(model: Any, asked: Sequence[str], card: models.Card) -> list[str]:
    """The modules that were asked for, or those of the card: a family may lack some in one size."""
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    missing = [target for target in asked if target.rpartition(".")[2] not in names]
    if missing:
        raise InputError(f"the model has no modules named {', '.join(missing)}", "--target-modules")
    return list(asked) or [target for target in card.lora_targets if target in names]


def compute_type(torch: Any, options: TrainOptions, device: str) -> Any:
    """fp32, unless bf16 multiplies clearly faster here (on many CPUs it is half as fast)."""
    if options.compute_type != "auto":
        return torch.float32 if options.compute_type == "fp32" else torch.bfloat16
    if device == "cuda":
        return torch.bfloat16
    if options.keep_4bit:  # bitsandbytes is 1.4 x faster in it on a CPU
        return torch.float32
    best = {torch.float32: math.inf, torch.bfloat16: math.inf}
    for _ in range(10):  # interleaved, so that a busy moment hits both
        for dtype in tuple(best):
            a, b = torch.randn(512, 576).to(dtype), torch.randn(576, 1536).to(dtype)
            start = time.perf_counter()
            torch.mm(a, b)
            best[dtype] = min(best[dtype], time.perf_counter() - start)
        if best[torch.bfloat16] > 4 * best[torch.float32]:
            break  # no instructions for it: each try may take a second
    faster = best[torch.bfloat16] < 0.75 * best[torch.float32]
    return torch.bfloat16 if faster else torch.float32
