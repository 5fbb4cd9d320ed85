"""A merged model run block by block, each on what the blocks before it make as they are now.

    blocks = Blocks(merged, sequences, threads=2)
    for block in blocks:                            # in memory until the next one
        for stage in block.stages():                # what reads only what is finished
            for group in block.gather(stage):
                for product in group.products:
                    product.weight.copy_(quantized(product.weight, group.hessian))

transformers computes a block; its weights come from the Merged view, and of the rest of the model
only the rows of the embedding that are needed. Every matrix product goes through
`torch.nn.functional.linear`, those of experts, too: there the inputs are seen.

Conversations lie side by side in rows of about WIDTH tokens, each with positions of its own, which
transformers takes for a reason to keep them apart (masking_utils.py: `find_packed_sequence_indices`).
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeft import models
from edgeft.errors import InputError, require
from edgeft.merge.torch_model import skeleton
from edgeft.merge.view import Merged
from edgeft.progress import quiet_libraries

WIDTH = 512
"""tokens that a block computes at a time; a longer conversation is a row of its own"""
HESSIANS = 2 << 30
"""bytes of Hessians that are gathered at a time"""
PANEL = 512
"""columns of a Hessian that are computed at a time, down to its diagonal only"""
STAGES = (
    r"attn_(q|k|v|qkv|q_a|kv_a_mqa)",
    r"attn_(q|kv|k|v)_b",
    r"attn_output",
    r"ffn_(gate|up)(_exps|_shexp)?",
    r"ffn_down(_exps|_shexp)?",
)
"""GGUF names of a block's linear layers, in the order in which they read each other"""
ATTENDED = 3
"""the first stage after attention"""


@dataclass(frozen=True)
class Product:
    """A matrix of the block that inputs are multiplied with."""

    names: tuple[str, ...]
    """in the checkpoint; those that lie below each other in the matrix"""
    weight: Any
    """torch (rows, columns), float32: what the block computes with"""
    stage: int

    def parts(self) -> Iterator[tuple[str, Any]]:
        """(name, its rows of the matrix)"""
        yield from zip(self.names, self.weight.chunk(len(self.names)), strict=True)


@dataclass
class Group:
    """Products that read the same inputs."""

    products: list[Product]
    hessian: Any
    """torch (columns, columns), float32: the sum of x xT over the inputs"""
    seen: int = 0
    """inputs"""


class Blocks:
    """See the module's docstring."""

    def __init__(
        self,
        merged: Merged,
        sequences: Sequence[Sequence[int]],
        threads: int,
        offload: Path | None = None,
    ) -> None:
        """`offload`: a folder for the activations, which are kept in memory otherwise.

        FormatError for a family that transformers does not compute.
        """
        if not any(map(len, sequences)):
            raise InputError("there are no conversations to calibrate on")
        torch = require("torch", "gptq")
        models.transformers_class(merged.config)
        torch.set_num_threads(threads)
        self.merged = merged
        self.tokens = sum(map(len, sequences))
        with quiet_libraries(), torch.inference_mode():
            self._model = skeleton(merged)
            shape = (self.tokens, self._model.config.hidden_size)
            self.states = _buffer(shape, offload)
            """the inputs of the block that is next, (tokens, hidden size)"""
            self.attended = _buffer(shape, offload)
            """what attention makes of them, once it is quantized"""
            self.rows: list[tuple[slice, list[Call]]] = []
            """which states are a row, and how each block is called with it"""
            self._begin(_packed(sequences))

    def __len__(self) -> int:
        return len(self._model.base_model.layers)

    def __iter__(self) -> Iterator[Block]:
        layers = self._model.base_model.layers
        for number, layer in enumerate(layers):
            block = Block(self, number, layer)
            yield block
            block.run()
            block.close()
            layer.to("meta")

    def _begin(self, packs: list[list[Sequence[int]]]) -> None:
        """The first block's inputs, and what every block is called with beside them."""
        import torch

        base = self._model.base_model
        used = np.unique(np.concatenate([ids for pack in packs for ids in pack]))
        name = self.merged.card.hf_name("token_embd.weight") or ""
        embedding = base.get_input_embeddings()
        embedding.padding_idx = None
        embedding.weight = _frozen(self.merged.rows(name, used))
        start = 0
        for pack in packs:
            ids = np.searchsorted(used, np.concatenate(pack))
            positions = np.concatenate([np.arange(len(part)) for part in pack])
            span = slice(start, start + len(ids))
            calls: list[Call] = []
            recorded = _recorded(base.layers, self.states[span], calls)
            with recorded, contextlib.suppress(_Enough):
                base(
                    input_ids=torch.from_numpy(ids)[None],
                    position_ids=torch.from_numpy(positions)[None],
                    use_cache=False,
                )
            self.rows.append((span, calls))
            start = span.stop
        embedding.to("meta")


@dataclass
class Call:
    """What the model calls a block with, after the states."""

    others: tuple[Any, ...]
    named: dict[str, Any]


class Block:
    """One block in memory."""

    def __init__(self, blocks: Blocks, number: int, layer: Any) -> None:
        self.number = number
        self._blocks = blocks
        self._layer = layer
        self.products = list(_fill(blocks.merged, number, layer))
        """what can be quantized"""
        self._span = slice(0)
        """the states that are computed with"""
        self._kept: list[Any] = []
        """modules that are not computed again"""

    def stages(self) -> Iterator[list[Product]]:
        """Products that are to be quantized together, as many as there is memory for."""
        for stage in range(len(STAGES)):
            if stage == ATTENDED:
                self._keep_attention()
            batch: list[Product] = []
            size = 0
            for product in (p for p in self.products if p.stage == stage):
                needed = 4 * product.weight.shape[1] ** 2
                if batch and size + needed > HESSIANS:
                    yield batch
                    batch, size = [], 0
                batch.append(product)
                size += needed
            if batch:
                yield batch

    def gather(self, products: Sequence[Product]) -> list[Group]:
        """Run the block as far as `products` to see their inputs.

        Every product is in a group; a group that has seen nothing is of an expert that no token
        was sent to.
        """
        import torch

        watch = _Watch(products)
        with torch.inference_mode(), _linear(watch):
            for span, calls in self._blocks.rows:
                watch.left = set(watch.wanted)
                with contextlib.suppress(_Enough):
                    self._call(span, calls)
        for group in watch.groups:
            upper = group.hessian.triu()
            group.hessian = upper + upper.triu(1).T
        found = {id(product) for group in watch.groups for product in group.products}
        left = [product for product in products if id(product) not in found]
        return watch.groups + [Group([p], torch.zeros(p.weight.shape[1:] * 2)) for p in left]

    def fingerprint(self) -> str:
        """Of all its weights as they are now."""
        digest = hashlib.sha256()
        for name, weight in self._layer.state_dict().items():
            digest.update(name.encode())
            digest.update(weight.reshape(-1).numpy())
        return digest.hexdigest()

    def run(self) -> None:
        """Put what the block makes of the states in their place."""
        import torch

        with torch.inference_mode():
            for span, calls in self._blocks.rows:
                self._blocks.states[span] = self._call(span, calls)[0]

    def close(self) -> None:
        """Forget the weights."""
        self.products.clear()
        for module in self._kept:
            del module.forward

    def _keep_attention(self) -> None:
        """Compute attention once more for each row; nothing before it changes any more."""
        for module in self._layer.children():
            own = {parameter.data_ptr() for parameter in module.parameters()}
            stages = {p.stage for p in self.products if p.weight.data_ptr() in own}
            if stages and max(stages) < ATTENDED:
                module.forward = self._once(module.forward)
                self._kept.append(module)
                return

    def _once(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A function of the states that looks its result up, where it has been computed."""
        attended, done = self._blocks.attended, set[int]()
        rest: tuple[None, ...] | None = None

        def looked_up(*given: Any, **named: Any) -> Any:
            nonlocal rest
            if self._span.start not in done:
                made = forward(*given, **named)
                states = made
                if isinstance(made, tuple):  # attention weights, which no one has asked for
                    states, rest = made[0], (None,) * (len(made) - 1)
                attended[self._span] = states[0]
                done.add(self._span.start)
            found = attended[self._span][None]
            return found if rest is None else (found, *rest)

        return looked_up

    def _call(self, span: slice, calls: list[Call]) -> Any:
        self._span, call = span, calls[self.number]
        made = self._layer(self._blocks.states[span][None], *call.others, **call.named)
        return made[0] if isinstance(made, tuple) else made


class _Enough(Exception):
    """Ends a forward pass that has shown what was asked for."""


class _Watch:
    """Takes the place of `linear` and sees what the wanted weights are multiplied with."""

    def __init__(self, products: Sequence[Product]) -> None:
        self.wanted = {product.weight.data_ptr(): product for product in products}
        self.left: set[int] = set()
        """wanted weights that were not used in this pass; with experts some never are"""
        self.groups: list[Group] = []
        self._group_of: dict[int, Group] = {}
        self._last: tuple[Any, Group] | None = None

    def __call__(self, given: Any, weight: Any) -> None:
        """Called before the product is computed."""
        product = self.wanted.get(weight.data_ptr())
        if product is None or weight.shape != product.weight.shape:
            return
        key = weight.data_ptr()
        self.left.discard(key)
        if self._last is None or self._last[0] is not given:
            self._add(key, product, given)
        elif key not in self._group_of:
            self._last[1].products.append(product)
            self._group_of[key] = self._last[1]
        if not self.left:
            self._last = None
            raise _Enough

    def _add(self, key: int, product: Product, given: Any) -> None:
        group = self._group_of.get(key)
        columns = given.shape[-1]
        if group is None:
            group = Group([product], given.new_zeros(columns, columns))
            self.groups.append(group)
            self._group_of[key] = group
        inputs = given.reshape(-1, columns)
        for start in range(0, columns, PANEL):
            stop = min(start + PANEL, columns)
            # Above the diagonal only: the rest is its mirror image.
            group.hessian[start:stop, start:].addmm_(inputs[:, start:stop].T, inputs[:, start:])
        group.seen += len(inputs)
        self._last = given, group


@contextlib.contextmanager
def _linear(watch: Callable[[Any, Any], None]) -> Iterator[None]:
    """Let `watch` see every matrix product."""
    import torch

    functional: Any = torch.nn.functional
    real = functional.linear

    def linear(given: Any, weight: Any, bias: Any = None) -> Any:
        watch(given, weight)
        return real(given, weight, bias)

    functional.linear = linear
    try:
        yield
    finally:
        functional.linear = real


@contextlib.contextmanager
def _recorded(layers: Any, first: Any, calls: list[Call]) -> Iterator[None]:
    """The blocks note how they are called instead of computing; `first` becomes the states that the
    first one is given."""

    def record(states: Any, *others: Any, **named: Any) -> Any:
        if not calls:
            first.copy_(states[0])
        calls.append(Call(others, named))
        if len(calls) == len(layers):
            raise _Enough
        return states

    for layer in layers:
        layer.forward = record
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _buffer(shape: tuple[int, int], folder: Path | None) -> Any:
    """Zeros, on the disk where a folder is given: in a file that has no name and ends with us."""
    import torch

    if folder is None:
        return torch.zeros(shape)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        return torch.from_file(file.name, True, math.prod(shape)).view(shape)


def _fill(merged: Merged, number: int, layer: Any) -> Iterator[Product]:
    """Give a block of the skeleton its weights.

    In memory of torch's own, as products may be a bit off where an array is aligned differently.
    """
    import torch

    card = merged.card
    prefix = next(name.partition("{i}")[0] + str(number) for name in card.tensors if "{i}" in name)
    state: dict[str, Any] = {}
    for own, empty in layer.state_dict().items():
        name = f"{prefix}.{own}"
        general, numbers = models.generalize(name)
        if general not in card.fused:
            stored = card.in_checkpoint(name)
            state[own] = torch.from_numpy(merged.tensor(stored)).view(empty.shape).clone()
            stage = stage_of(card, stored)
            if stage is not None and empty.ndim == 2:
                yield Product((stored,), state[own], stage)
            continue
        state[own] = torch.empty(empty.shape)
        for expert, matrix in enumerate(state[own]):
            parts = [models.fill(part, (*numbers, expert)) for part in card.fused[general]]
            rows = len(matrix) // len(parts)
            for i, part in enumerate(parts):
                matrix[i * rows : (i + 1) * rows] = torch.from_numpy(merged.tensor(part))
            stage = stage_of(card, parts[0])
            if stage is not None:
                yield Product(tuple(parts), matrix, stage)
    layer.load_state_dict(state, assign=True)


def stage_of(card: models.Card, name: str) -> int | None:
    """Which of STAGES a weight of the checkpoint is in; None: it is no linear layer of a block."""
    gguf = "".join(card.gguf_names(name)[0][:1])
    role = gguf.removesuffix(".weight").rpartition(".")[2]
    found = (i for i, pattern in enumerate(STAGES) if re.fullmatch(pattern, role))
    return next(found, None) if gguf.endswith(".weight") else None


def _frozen(values: Any) -> Any:
    import torch

    return torch.nn.Parameter(torch.from_numpy(values), requires_grad=False)


def _packed(sequences: Sequence[Sequence[int]]) -> list[list[Sequence[int]]]:
    """Rows of neighbouring sequences, none longer than WIDTH unless it is a single one."""
    packs: list[list[Sequence[int]]] = []
    room = 0
    for ids in filter(len, sequences):
        if len(ids) > room:
            packs.append([])
            room = WIDTH
        packs[-1].append(ids)
        room -= len(ids)
    return packs
