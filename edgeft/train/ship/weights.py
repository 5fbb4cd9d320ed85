"""peft's model with LoRA -> the same layers at the values that a file has for their sums.

After each step W + s·B·A of every layer is rounded as the file rounds it (`edgeft.quantization.rounding`), block
by block in threads, and the layer's forward pass takes the result (`lora_function.QuantizedLoRAFunction`).
Everything that does not train (embedding, head, other linear layers) is put to the file's values once.

With a file of --ship-from (`KeptScales`) the layers begin with its values, its scales stay, and every step is
as fast as Q4_0's.

ggml's quantizers of K-quants take 10 to 50 times as long. Between two runs of theirs the scales and
minima stay, and each sum takes the nearest value (`exact=False`). The export computes the sums with the
same function and in the same blocks, so that the file has the bytes whose hashes `facts` records.
"""

# Imported only when a run starts, after the check for the extra.
# ruff: noqa: TID253

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import peft
import torch
from threadpoolctl import ThreadpoolController

from edgeft import store
from edgeft.adapter.config import FROM_FILE
from edgeft.adapter.deltas import lora_delta
from edgeft.errors import InputError
from edgeft.quantization import ggml
from edgeft.quantization.kept_scales import KeptScales
from edgeft.quantization.nearest import Scales
from edgeft.quantization.rounding import FileTensor
from edgeft.train.protocol import without_peft
from edgeft.train.ship.file_tensors import file_tensors
from edgeft.weights.text_base import TextBase

Array = npt.NDArray[np.float32]
DIVERGED, RATE_HINT = "--ship: ", "a smaller --learning-rate"
FINITE_STEPS = 32
"""steps of a training from a file between two looks whether it has diverged"""
T = TypeVar("T")
R = TypeVar("R")


@dataclass
class ShipLayer:
    """A layer with LoRA and its tensor in the file."""

    module: Any
    """peft's layer"""
    file: FileTensor
    values: torch.Tensor
    """(out, in) float32: what the forward pass computes with"""
    scales: dict[int, Scales] = field(default_factory=dict)
    """first row of a block -> its scales, where they stay"""
    kept: KeptScales | None = None
    """the file of --ship-from"""
    name: str = ""
    """of the weight in the checkpoint"""
    begun: tuple[torch.Tensor, ...] = ()
    """W, B and A as the training found them, where they are kept"""

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

    def keep_begun(self) -> None:
        """Remember the present W, B and A as `begun`. Only `begin` changes W, in another tensor."""
        matrices = (matrix.detach().clone() for matrix in self.lora())
        self.begun = (self.module.get_base_layer().weight.data, *matrices)

    def swap(self, parts: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Give the layer these W, B and A; returns the ones that it had."""
        tensors = (self.module.get_base_layer().weight, *self.lora())
        before = tuple(tensor.data for tensor in tensors)
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.data = part
        return before

    def begin(self) -> None:
        """Take the file's values as the weight, and LoRA's change as none: the file has it already."""
        assert self.kept
        base = self.module.get_base_layer().weight
        if self.begun:
            base.data = torch.empty_like(base)
        weight = base.detach().numpy()
        for rows in ggml.row_blocks(*weight.shape):
            weight[rows] = self.kept.start(self.name, rows)
        self.lora()[0].data.zero_()

    def update(self, rows: slice, exact: bool) -> None:
        """Give these rows of the file their values."""
        source, sums = self.sums(rows)
        rounding = self.file.rounding
        if self.kept:
            if rows.start not in self.scales:
                self.scales[rows.start] = self.kept.scales(self.name, source)
            self.values.numpy()[source] = self.scales[rows.start].nearest(sums)
            if exact and not np.isfinite(sums).all():
                raise InputError(f"{DIVERGED}{self.file.name} is not finite", RATE_HINT)
            return
        if exact or rounding.steps == 1 or rows.start not in self.scales:
            stored = _stored(self.file, sums)
            values = rounding.values(stored, sums.shape[1])
            if rounding.steps > 1:
                self.scales[rows.start] = rounding.scales(stored)
        else:
            values = self.scales[rows.start].nearest(sums)
        self.values.numpy()[source] = values

    def blocks(self) -> Iterator[slice]:
        return ggml.row_blocks(*self.values.shape)

    def digest(self) -> str:
        return self.file.rounding.digest(self._stored(*self.sums(rows)) for rows in self.blocks())

    def _stored(self, source: Any, sums: Array) -> Any:
        if not self.kept:
            return _stored(self.file, sums)
        try:
            return self.kept.nearest(self.name, source, sums)
        except ValueError as error:
            raise InputError(f"{DIVERGED}{error}", RATE_HINT) from None


class ShipWeights:
    """The layers of a model at the values of a file; `lora_function.install` comes before."""

    def __init__(
        self,
        model: Any,
        base: TextBase,
        quant: str,
        kept: KeptScales | None = None,
        teaches: bool = False,
    ) -> None:
        """`kept`: a file whose scales stay, and whose values the layers begin with. `teaches`: keep what
        `as_begun` computes with: r (in + out) float32 a layer, and with `kept` W.

        InputError where a trained weight has no place of its own in the file, or no codes in `kept`.
        """
        self.quant, self.card, self.kept = quant, base.card, kept
        self._model = without_peft(model)
        self._tensors = file_tensors(base, quant)
        self.layers = [
            ShipLayer(module, self._file(name), torch.empty(0), kept=kept, name=self._name(name))
            for name, module in self._model.named_modules()
            if isinstance(module, peft.tuners.lora.LoraLayer)
        ]
        self._frozen: dict[str, str] = {}
        self._threads = ThreadpoolController()
        self.started = False
        self.file_facts: dict[str, str] = {}
        """path and identity of the file of `kept`, for the manifest"""
        for layer in self.layers if teaches else ():
            layer.keep_begun()
        if kept:
            path = kept.path.absolute()
            self.file_facts = {"path": str(path), "identity": store.identity(path)}
            self._begin(kept)
            # Whoever reads the adapter without its manifest must not take it for one of the base.
            model.peft_config["default"].init_lora_weights = FROM_FILE

    @property
    def exact_steps(self) -> int:
        """Steps between two updates that are exact for all types; 1 where all are fast."""
        if self.kept:  # every update is: so often all sums are held to be finite, too
            return FINITE_STEPS
        return max((layer.file.rounding.steps for layer in self.layers), default=1)

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
        """Give the layers the values of their present sums; `exact`: those of the file for slow types, too."""

        def work(job: tuple[ShipLayer, slice]) -> None:
            layer, rows = job
            layer.update(rows, exact)

        self._in_threads(work, [(layer, rows) for layer in self.layers for rows in layer.blocks()])

    @contextlib.contextmanager
    def as_begun(self) -> Iterator[None]:
        """Compute with the adapter that the training began with, and with weights that are not rounded. What
        does not train, such as the embedding, is as in the file."""
        now = [layer.swap(layer.begun) for layer in self.layers]
        for layer in self.layers:
            del layer.module.ship_weight
        try:
            yield
        finally:
            for layer, parts in zip(self.layers, now, strict=True):
                layer.swap(parts)
                layer.module.ship_weight = layer.values

    def facts(self) -> dict[str, Any]:
        """Type and hash of each tensor of the file: its name -> [type, BLAKE2b of what is stored]."""
        digests = self._in_threads(ShipLayer.digest, self.layers)
        trained = dict(zip((layer.file.name for layer in self.layers), digests, strict=True))
        types = {file.name: file.rounding.name for file in self._tensors.values()}
        tensors = sorted((self._frozen | trained).items())
        return {"type": self.quant, "tensors": {name: [types[name], h] for name, h in tensors}}

    def _in_threads(self, work: Callable[[T], R], jobs: Sequence[T]) -> list[R]:
        """The results of `jobs`; each product of matrices has one thread, as in an export."""
        with (
            self._threads.limit(limits=1, user_api="blas"),
            ThreadPoolExecutor(torch.get_num_threads()) as pool,
        ):
            return list(pool.map(work, jobs))

    def _begin(self, kept: KeptScales) -> None:
        """Give the layers the file's values, before anything is computed."""
        for layer in self.layers:
            if not kept.moves(layer.name):
                raise InputError(f"{kept.path} has no codes of {layer.name}", "such as gptq-q4_0")
        for name, weight in self._model.named_parameters():
            vector = kept.vectors.get(self.card.in_checkpoint(name.replace(".base_layer.", ".")))
            if vector is not None:
                weight.detach().numpy()[:] = vector
        self._in_threads(ShipLayer.begin, self.layers)

    def _name(self, module: str) -> str:
        return self.card.in_checkpoint(f"{module}.weight")

    def _file(self, module: str) -> FileTensor:
        name = self._name(module)
        if name not in self._tensors:
            raise InputError(
                f"--ship: {name} has no place of its own in the file", "--target-modules"
            )
        return self._tensors[name]

    def _freeze(self) -> None:
        """Put what does not train to the file's values."""
        parameters = {
            self.card.in_checkpoint(name.replace(".base_layer.", ".")): parameter
            for name, parameter in self._model.named_parameters()
            if ".lora_" not in name
        }
        trained = {layer.file.name for layer in self.layers}
        for name, file in self._tensors.items():
            if file.name in trained:
                continue
            weight = parameters[name].detach().numpy()
            if self.kept and self.kept.type_of(name) is not None:
                everything = slice(None)
                weight[:] = self.kept.values(name, everything)
                order = everything if file.order is None else file.order
                self._frozen[file.name] = file.rounding.digest([self.kept.data(name, order)])
                continue
            weight = weight.reshape(-1, weight.shape[-1])  # a vector is one row
            rows = slice(None) if file.order is None else file.order
            stored = _stored(file, weight[rows], torch.get_num_threads())
            weight[rows] = file.rounding.values(stored, weight.shape[1])
            self._frozen[file.name] = file.rounding.digest([stored])


def _stored(file: FileTensor, values: Array, threads: int = 1) -> Any:
    """What the file has of these rows. InputError for values that its type cannot hold."""
    try:
        return file.rounding.store(values, threads)
    except ValueError as error:
        raise InputError(f"{DIVERGED}{file.name}: {error}", RATE_HINT) from None
