"""Base folder -> transformers' model whose frozen weights are a read-only map of a file.

    model = mapped_base(options, card, torch.float32)
    model = mapped_base(options, card, torch.float32, quantize)     # at other values

The weights are written once, in the type of the computation, tensor by tensor. The kernel reads their
pages when they are used, and drops them where memory is short: they are never in anonymous memory.
"""

# Imported only when a run starts, after the check for the extra.
# ruff: noqa: TID253

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from edgeft.errors import InputError, ResourceError
from edgeft.models import Card
from edgeft.train.methods.base_model import from_tensors
from edgeft.train.options import TrainOptions
from edgeft.weights.checkpoint import Checkpoint, Spec, write_safetensors
from edgeft.weights.dtypes import Array, stored_as
from edgeft.weights.text_base import TextBase, open_base

STORED = {torch.float32: "F32", torch.bfloat16: "BF16"}
"""type of a computation -> its name in safetensors"""
Quantize = Callable[[Array], Array]


def check_mapping(options: TrainOptions, card: Card) -> None:
    """ResourceError or InputError where --offload-weights cannot map the frozen weights."""
    if not options.offload_weights:
        return
    if torch.cuda.is_available():
        raise ResourceError(
            "--offload-weights maps a file into the memory of a CPU, and this run is on a GPU",
            "leave it out, or hide the GPU: CUDA_VISIBLE_DEVICES=''",
        )
    if card.fused:
        raise InputError(
            f"--offload-weights: transformers joins the experts of {card.family} in memory",
            "leave it out",
        )


def mapped_base(
    options: TrainOptions, card: Card, dtype: Any, quantize: Quantize | None = None
) -> Any:
    """The frozen base, computing in `dtype`; its linear layers (`Card.in_4bit`) at the values that
    `quantize` gives.

    A base that is stored in `dtype` is mapped where it lies, else a file in the work folder, which has
    no name any more when this returns.
    """
    base, stored = open_base(options.base), STORED[dtype]
    weights, file = base.weights, options.work_folder / f"weights.{stored}.safetensors"
    names = [name for name in weights.tensors if not card.ignores(name)]
    if quantize or not base.plain or {weights.tensors[name].dtype for name in names} != {stored}:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)  # of a run that was killed
        specs = [Spec(name, stored, weights.tensors[name].shape) for name in names]
        write_safetensors(file, specs, _values(base, stored, quantize))
        weights = Checkpoint(file)
    with warnings.catch_warnings():  # torch has no read-only tensors, and nothing writes here
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        tensors = {
            name: torch.from_numpy(weights.raw(name)).view(dtype).view(weights.tensors[name].shape)
            for name in names
        }
    file.unlink(missing_ok=True)
    model = from_tensors(options.base, tensors, dtype)
    return model.requires_grad_(False)


def _values(base: TextBase, stored: str, quantize: Quantize | None) -> Iterator[Array]:
    """float32 values of each tensor."""
    for name, values in base.tensors():
        if quantize and base.card.in_4bit(name, values.shape):
            # As in a model that was loaded in the type of the computation.
            values = quantize(stored_as(values, stored))
        yield values
