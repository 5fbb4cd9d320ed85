"""QLoRA (arXiv 2305.14314): the base frozen in 4 bits, LoRA matrices on its linear layers.

The base is frozen at its NF4 values. By default they are dequantized once to the compute type that
is faster on this machine, which on a CPU trains 1.5-2.8 x faster than dequantizing in every step
and learns the same. `keep_4bit` keeps them packed by bitsandbytes where memory is short.

The result is an adapter in peft's format. Its facts say which base values it was trained on.
"""

# Imported only when a run starts, after the check for the extra.
# ruff: noqa: TID253

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from edgeft.errors import InputError, require
from edgeft.models import Card, transformers_class, transformers_config
from edgeft.progress import say
from edgeft.quantization import nf4
from edgeft.tokenizer.training_settings import config_overrides
from edgeft.train.options import TrainOptions
from edgeft.train.protocol import Method
from edgeft.weights.text_base import open_base


class QLoRA(Method):
    """LoRA on a base that is frozen at its NF4 values."""

    def __init__(self, options: TrainOptions, card: Card) -> None:
        self.options, self.card = options, card

    def prepare(self, device: str) -> Any:
        """peft's model. Its LoRA matrices depend on the seed alone, not on how the base loads."""
        options = self.options
        self.dtype = compute_dtype(options, device)
        say(f"base in NF4, {'kept in 4 bits' if options.keep_4bit else 'dequantized once'}, "
            f"computing in {_name(self.dtype)} on {device}")  # fmt: skip
        base = frozen_base(options, self.card, self.dtype, device)
        transformers.set_seed(options.seed)
        return peft.get_peft_model(
            base,
            peft.LoraConfig(
                r=options.lora_r,
                lora_alpha=options.lora_alpha,
                lora_dropout=options.lora_dropout,
                target_modules=target_modules(base, options.target_modules, self.card),
                task_type="CAUSAL_LM",
            ),
        )

    def facts(self) -> dict[str, Any]:
        """What `edgeft.merge.base_weights` needs to compute the same base values again."""
        compute_type = _name(self.dtype)
        return {
            "compute_type": compute_type,
            "nf4": {
                "kind": "nf4",
                "block": nf4.BLOCK,
                "double_quant": True,
                "compute_type": compute_type,
                "threads": torch.get_num_threads() if self.options.keep_4bit else 1,
            },
        }

    def save(self, model: Any, folder: Path) -> None:
        """adapter_config.json and adapter_model.safetensors, without peft's model card."""
        model.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)


def frozen_base(options: TrainOptions, card: Card, dtype: Any, device: str) -> Any:
    """The base model computing in `dtype`, frozen, its 4-bit weights (`Card.in_4bit`) in NF4.

    `edgeft.merge.base_weights` computes the same values again.
    """
    load = _packed_base if options.keep_4bit else _dequantized_base
    model = load(options.base, card, dtype, device)
    model.requires_grad_(False)
    return model


def _dequantized_base(base: Path, card: Card, dtype: Any, device: str) -> Any:
    """The base with NF4's values in tensors of `dtype`.

    It is loaded in `dtype`, not cast to it: a cast would round what transformers holds in float32,
    such as the frequencies of the rotary embedding.
    """
    model = _load(base, dtype)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if _in_4bit(card, name, weight):
                weight.copy_(torch.from_numpy(nf4.round_trip(weight.float().numpy())))
    return model.to(device)


def _packed_base(base: Path, card: Card, dtype: Any, device: str) -> Any:
    """The base with its 4-bit weights packed by bitsandbytes."""
    require("bitsandbytes", "train")
    if device == "cpu":
        _check_widths(base, card)
    packing = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=_unpacked_modules(base, card),
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    model = _load(base, dtype, quantization_config=packing, device_map={"": device})
    for module in model.modules():
        # Without this bitsandbytes 0.50.2 repacks the weights at the first evaluation and
        # never back, and training goes on without the gradients that pass through them.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def _load(base: Path, dtype: Any, **more: Any) -> Any:
    text, overrides = open_base(base), config_overrides(base)
    if text.plain:
        return transformers.AutoModelForCausalLM.from_pretrained(
            base, dtype=dtype, use_safetensors=True, **overrides, **more
        )
    config = transformers_config(text.config | overrides)
    state_dict = {name: torch.from_numpy(values).to(dtype) for name, values in text.tensors()}
    return transformers_class(text.config).from_pretrained(
        None, config=config, state_dict=state_dict, dtype=dtype, **more
    )


def _check_widths(base: Path, card: Card) -> None:
    """InputError for a weight that bitsandbytes cannot pack on a CPU.

    bitsandbytes 0.50.2 computes wrong values there: its CPU kernel starts a block in each row.
    """
    for name, info in open_base(base).weights.tensors.items():
        if card.in_4bit(name, info.shape) and info.shape[1] % nf4.BLOCK:
            raise InputError(
                f"--keep-4bit on a CPU needs widths that are multiples of {nf4.BLOCK}: "
                f"{name} ({info.shape[1]} wide)",
                "leave --keep-4bit out",
            )


def _unpacked_modules(base: Path, card: Card) -> list[str]:
    """Names of the linear layers that bitsandbytes must leave alone."""
    with torch.device("meta"):
        outline = transformers.AutoModelForCausalLM.from_config(
            transformers_config(open_base(base).config | config_overrides(base))
        )
    return [
        name
        for name, module in outline.named_modules()
        if isinstance(module, torch.nn.Linear)
        and not _in_4bit(card, f"{name}.weight", module.weight)
    ]


def _in_4bit(card: Card, name: str, weight: Any) -> bool:
    return card.in_4bit(card.in_checkpoint(name), tuple(weight.shape))


def target_modules(model: Any, chosen: Sequence[str], card: Card) -> list[str]:
    """The chosen module names; without any, those of the card that this size of model has.

    InputError for a chosen name that no module has.
    """
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    missing = [target for target in chosen if target.rpartition(".")[2] not in names]
    if missing:
        raise InputError(f"the model has no modules named {', '.join(missing)}", "--target-modules")
    return list(chosen) or [target for target in card.lora_targets if target in names]


def compute_dtype(options: TrainOptions, device: str) -> Any:
    """The torch dtype of --compute-type; "auto" is bf16 on a GPU, on a CPU what is faster."""
    if options.compute_type != "auto":
        return torch.float32 if options.compute_type == "fp32" else torch.bfloat16
    if device == "cuda":
        return torch.bfloat16
    if options.keep_4bit:  # bitsandbytes is 1.4 x faster in it on a CPU
        return torch.float32
    return _faster_dtype()


def _faster_dtype() -> Any:
    """bfloat16 where it multiplies clearly faster than float32 here (on many CPUs it is slower)."""
    seconds = {torch.float32: math.inf, torch.bfloat16: math.inf}
    for _ in range(10):  # interleaved, so that a busy moment hits both
        for dtype in tuple(seconds):
            a, b = torch.randn(512, 576).to(dtype), torch.randn(576, 1536).to(dtype)
            start = time.perf_counter()
            torch.mm(a, b)
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
        if seconds[torch.bfloat16] > 4 * seconds[torch.float32]:
            break  # no instructions for it: each try may take a second
    faster = seconds[torch.bfloat16] < 0.75 * seconds[torch.float32]
    return torch.bfloat16 if faster else torch.float32


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
