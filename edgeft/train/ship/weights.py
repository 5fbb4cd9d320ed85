"""peft's model with LoRA -> the same layers at the values that a GGUF file has for their sums.

After each step W + s·B·A of every layer is quantized and dequantized by ggml's own kernels, block by
block in threads, and the layer's forward pass takes the result (`lora_function.QuantizedLoRAFunction`).
Everything that does not train (embedding, head, other linear layers) is put to the file's values once.

ggml's quantizers of K-quants take 10 to 50 times as long. Between two runs of theirs the scales and
minima stay, and each sum takes the nearest value (`exact=False`). The export computes the sums with the
same function and in the same blocks, so that the file has the bytes whose hashes `facts` records.
"""

# Imported only when a run starts, after the check for the extra.
# ruff: noqa: TID253

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import peft
import torch
from threadpoolctl import ThreadpoolController

from edgeft.adapter.deltas import lora_delta
from edgeft.errors import InputError
from edgeft.quantization import ggml
from edgeft.quantization.nearest import Scales, scales_of
from edgeft.train.protocol import without_peft
from edgeft.train.ship.file_tensors import FAST_TYPES, FileTensor, file_tensors
from edgeft.weights.text_base import TextBase

Array = npt.NDArray[np.float32]
T = TypeVar("T")
R = TypeVar("R")
K_QUANT_STEPS, IQ4_STEPS = 32, 64
"""steps between two runs of ggml's quantizer, which takes as long as one to four of them"""


@dataclass
class ShipLayer:
    """A layer with LoRA and its tensor in the file."""

    module: Any
    """peft's layer"""
    file: FileTensor
    values: torch.Tensor
    """(out, in) float32: what the forward pass computes with"""
    scales: dict[int, Scales] = field(default_factory=dict)
    """first row of a block -> its scales, for slow types"""

    def lora(self) -> tuple[torch.Tensor, torch.Tensor]:
        """B (out, r) and A (r, in)."""
        name = self.module.active_adapters[0]
        return self.module.lora_B[name].weight, self.module.lora_A[name].weight

    def parts(self) -> tuple[Array, Array, Array, float]:
        """W, B and A as they are now, and s."""
        tensors = (self.module.get_base_layer().weight, *self.lora())
        base, left, right = (tensor.detach().numpy() for tensor in tensors)
        return base, left, right, self.module.scaling[self.module.active_adapters[0]]

    def sums(self, rows: slice) -> tuple[Any, Array]:
        """(rows of the weight, their W + s·B·A) of some rows of the file."""
        base, left, right, scale = self.parts()
        source = rows if self.file.order is None else self.file.order[rows]
        return source, base[source] + lora_delta(left[source], right, scale)

    def update(self, rows: slice, exact: bool) -> None:
        """Give these rows of the file their values."""
        source, sums = self.sums(rows)
        if exact or rows.start not in self.scales:
            data = ggml.quantize(sums, self.file.qtype, threads=1)
            values = ggml.dequantize(data, self.file.qtype)
            if self.file.qtype.name not in FAST_TYPES:
                self.scales[rows.start] = scales_of(data, self.file.qtype)
        else:
            values = self.scales[rows.start].nearest(sums)
        self.values.numpy()[source] = values

    def blocks(self) -> Iterator[slice]:
        return ggml.row_blocks(*self.values.shape)

    def digest(self) -> str:
        return ggml.digest(
            ggml.quantize(self.sums(rows)[1], self.file.qtype, threads=1) for rows in self.blocks()
        )


class ShipWeights:
    """The layers of a model at the values of a file; `lora_function.install` comes before."""

    def __init__(self, model: Any, base: TextBase, quant: str) -> None:
        """InputError where a trained weight has no place of its own in the file."""
        self.quant, self.card = quant, base.card
        self._model = without_peft(model)
        self._tensors = file_tensors(base, quant)
        self.layers = [
            ShipLayer(module, self._file(name), torch.empty(0))
            for name, module in self._model.named_modules()
            if isinstance(module, peft.tuners.lora.LoraLayer)
        ]
        self._frozen: dict[str, str] = {}
        self._threads = ThreadpoolController()
        self.started = False

    @property
    def fast(self) -> bool:
        """Whether ggml quantizes every layer in no time, so that all updates are exact."""
        return self.types <= FAST_TYPES

    @property
    def types(self) -> set[str]:
        """Types of the layers with LoRA."""
        return {layer.file.qtype.name for layer in self.layers}

    @property
    def exact_steps(self) -> int:
        """Steps between two runs of the slowest type's quantizer."""
        if self.fast:
            return 1
        return IQ4_STEPS if self.types & {"IQ4_NL", "IQ4_XS"} else K_QUANT_STEPS

    def start(self) -> None:
        """From here on the forward pass computes with the file's values."""
        if not self._frozen:
            self._freeze()
        for layer in self.layers:
            layer.values = torch.empty_like(layer.module.get_base_layer().weight)
            layer.module.ship_weight = layer.values
        self.started = True
        self.update(exact=True)

    def update(self, exact: bool) -> None:
        """Give the layers the values of their present sums; `exact`: by ggml's quantizer for all types.

        Types whose quantizer is fast are exact always.
        """

        def work(job: tuple[ShipLayer, slice]) -> None:
            layer, rows = job
            layer.update(rows, exact or layer.file.qtype.name in FAST_TYPES)

        self._in_threads(work, [(layer, rows) for layer in self.layers for rows in layer.blocks()])

    def facts(self) -> dict[str, Any]:
        """Type and hash of each tensor of the file: GGUF name -> [type, BLAKE2b of its bytes]."""
        digests = self._in_threads(ShipLayer.digest, self.layers)
        trained = dict(zip((layer.file.name for layer in self.layers), digests, strict=True))
        types = {file.name: file.qtype.name for file in self._tensors.values()}
        tensors = sorted((self._frozen | trained).items())
        return {"type": self.quant, "tensors": {name: [types[name], h] for name, h in tensors}}

    def _in_threads(self, work: Callable[[T], R], jobs: Sequence[T]) -> list[R]:
        """The results of `jobs`; each product of matrices has one thread, as in an export."""
        with (
            self._threads.limit(limits=1, user_api="blas"),
            ThreadPoolExecutor(torch.get_num_threads()) as pool,
        ):
            return list(pool.map(work, jobs))

    def _file(self, module: str) -> FileTensor:
        name = self.card.in_checkpoint(f"{module}.weight")
        if name not in self._tensors:
            raise InputError(
                f"--ship: {name} has no place of its own in the file", "--target-modules"
            )
        return self._tensors[name]

    def _freeze(self) -> None:
        """Put what does not train to the file's values."""
        inside = {p for layer in self.layers for p in layer.module.parameters()}
        parameters = {
            self.card.in_checkpoint(name): parameter
            for name, parameter in self._model.named_parameters()
            if parameter not in inside
        }
        trained = {layer.file.name for layer in self.layers}
        for name, file in self._tensors.items():
            if file.name in trained:
                continue
            weight = parameters[name].detach().numpy()
            rows = slice(None) if file.order is None else file.order
            data = ggml.quantize(weight[rows], file.qtype, threads=torch.get_num_threads())
            weight[rows] = ggml.dequantize(data, file.qtype)
            self._frozen[file.name] = ggml.digest([data])
