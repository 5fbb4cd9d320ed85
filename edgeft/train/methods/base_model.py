"""Base folder -> transformers' model, as training holds it: as stored, or frozen in 4 or 8 bits.

    model = stored_base(folder, torch.float32, "cpu")
    model = frozen_base(options, card, torch.float32, "cpu")    # at its values in NF4, FP4 or int8

Quantized values are dequantized once to the compute type that is faster on this machine, which on a
CPU trains 1.5-2.8 x faster than dequantizing in every step and learns the same. `keep_4bit` keeps
4-bit weights packed by bitsandbytes where memory is short.
"""

# Imported only when a run starts, after the check for the extra.
# ruff: noqa: TID253

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from edgeft.errors import InputError, require
from edgeft.models import Card, transformers_class, transformers_config
from edgeft.quantization import int8, nf4
from edgeft.tokenizer.training_settings import config_overrides
from edgeft.train.options import TrainOptions
from edgeft.train.targets import ALL_LINEAR, is_target, pattern_of
from edgeft.weights.text_base import open_base


def stored_base(base: Path, dtype: Any, device: str) -> Any:
    """The base as it is stored, in `dtype`, frozen."""
    model = _load(base, dtype).to(device)
    model.requires_grad_(False)
    return model


def trainable_base(options: TrainOptions, dtype: Any, device: str) -> Any:
    """The base in float32, frozen, computing in `dtype` (torch's mixed precision).

    For methods that train weights of the base: a small step would be lost in bfloat16 weights.
    """
    model = stored_base(options.base, torch.float32, device)
    if dtype != torch.float32:
        model.forward = torch.autocast(device, dtype=dtype)(model.forward)
        model.computes_in = dtype
    # A checkpoint holds the model, and transformers refuses to write some settings that it reads.
    model.generation_config = transformers.GenerationConfig()
    transformers.set_seed(options.seed)
    return model


def frozen_base(options: TrainOptions, card: Card, dtype: Any, device: str) -> Any:
    """The base model computing in `dtype`, frozen, its linear layers (`Card.in_4bit`) at their values
    in `options.quantization`.

    `edgeft.merge.base_weights` computes the same values again.
    """
    load = _packed_base if options.keep_4bit else _dequantized_base
    model = load(options, card, dtype, device)
    model.requires_grad_(False)
    return model


def check_packing(options: TrainOptions) -> None:
    """InputError where `keep_4bit` cannot pack this base; MissingExtra without bitsandbytes."""
    if not options.keep_4bit:
        return
    if options.quantization == "int8":
        raise InputError(
            "--keep-4bit packs nf4 and fp4, not int8",
            "leave --keep-4bit out, or --quantization nf4",
        )
    require("bitsandbytes", "train")


def _dequantized_base(options: TrainOptions, card: Card, dtype: Any, device: str) -> Any:
    """The base with the quantized values in tensors of `dtype`.

    It is loaded in `dtype`, not cast to it: a cast would round what transformers holds in float32,
    such as the frequencies of the rotary embedding.
    """
    model = _load(options.base, dtype)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if _in_4bit(card, name, weight):
                values = round_trip(options, weight.float().numpy())
                weight.copy_(torch.from_numpy(values))
    return model.to(device)


def round_trip(options: TrainOptions, values: Any) -> Any:
    """float32 (rows, columns) -> the values after quantization, float32."""
    if options.quantization == "int8":
        return int8.round_trip(values)
    return nf4.round_trip(values, options.quantization, options.double_quant)


def _packed_base(options: TrainOptions, card: Card, dtype: Any, device: str) -> Any:
    """The base with its 4-bit weights packed by bitsandbytes."""
    base = options.base
    if device == "cpu":
        _check_widths(base, card)
    packing = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=_unpacked_modules(base, card),
        bnb_4bit_quant_type=options.quantization,
        bnb_4bit_use_double_quant=options.double_quant,
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
    text = open_base(base)
    if text.plain:
        return transformers.AutoModelForCausalLM.from_pretrained(
            base, dtype=dtype, use_safetensors=True, **config_overrides(base), **more
        )
    tensors = {name: torch.from_numpy(values).to(dtype) for name, values in text.tensors()}
    return from_tensors(base, tensors, dtype, **more)


def from_tensors(base: Path, tensors: dict[str, Any], dtype: Any, **more: Any) -> Any:
    """The base's model with these weights, under their names in the checkpoint; they are not copied."""
    text = open_base(base)
    config = transformers_config(text.config | config_overrides(base))
    return transformers_class(text.config).from_pretrained(
        None, config=config, state_dict=tensors, dtype=dtype, **more
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


def outline(base: Path) -> Any:
    """The base's modules without weights, on torch's meta device."""
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(
            transformers_config(open_base(base).config | config_overrides(base))
        )


def _unpacked_modules(base: Path, card: Card) -> list[str]:
    """Names of the linear layers that bitsandbytes must leave alone."""
    return [
        name
        for name, module in outline(base).named_modules()
        if isinstance(module, torch.nn.Linear)
        and not _in_4bit(card, f"{name}.weight", module.weight)
    ]


def _in_4bit(card: Card, name: str, weight: Any) -> bool:
    return card.in_4bit(card.in_checkpoint(name), tuple(weight.shape))


def target_modules(model: Any, chosen: Sequence[str], default: Sequence[str]) -> list[str] | str:
    """What peft takes as `target_modules`: names of modules, or a regular expression.

    `chosen`: names, "all-linear" (every linear layer but the head), or a regular expression for a
    module's whole name, whose commas may have cut it. Without any, the names of `default` that this
    size of model has. InputError for what no module has.
    """
    modules = [name for name, _ in model.named_modules()]
    if not chosen:
        leaves = {name.rpartition(".")[2] for name in modules}
        return [target for target in default if target in leaves]
    if list(chosen) == [ALL_LINEAR]:
        head = model.get_output_embeddings()
        linear = {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and module is not head
        }
        return sorted(linear)
    if pattern := pattern_of(chosen):
        if not any(is_target(name, pattern) for name in modules):
            raise InputError(
                f"--target-modules {pattern!r} matches no module",
                f"it must match a whole name, such as {modules[-1]}",
            )
        return pattern
    missing = [t for t in chosen if not any(is_target(name, [t]) for name in modules)]
    if missing:
        raise InputError(f"the model has no modules named {', '.join(missing)}", "--target-modules")
    return list(chosen)


def compute_dtype(options: TrainOptions, device: str) -> Any:
    """The torch dtype of --compute-type; "auto" is bf16 on a GPU, on a CPU what is faster."""
    if options.compute_type != "auto":
        return torch.float32 if options.compute_type == "fp32" else torch.bfloat16
    if options.ship:  # ggml quantizes float32 sums
        return torch.float32
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


def dtype_name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
