"""The Merged view + token ids -> its transformer blocks in order, with Hessians of their inputs.

    blocks = Blocks(merged, sequences, threads=2)
    for block in blocks:                            # one block in memory at a time
        for stage in block.stages():                # weights whose inputs no longer change
            for group in block.gather(stage):
                for linear in group.linears:
                    linear.weight.copy_(quantized(linear.weight, group.hessian))

transformers computes the blocks. Their weights come from the Merged view; of the embedding only the
rows that the ids name are read. Each block gets the outputs of the blocks before it in their current
(already quantized) state.

Inputs are seen by forward pre-hooks on the linear layers. Experts in one 3-D parameter have no layers
of their own: while these are watched, `torch.nn.functional.linear` is replaced.

Sequences are packed side by side into rows of about ROW_TOKENS tokens. Each has positions of its
own, from which transformers sees that they must not attend to each other (masking_utils.py:
`find_packed_sequence_indices`).
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeft import machine, models
from edgeft.errors import InputError, require
from edgeft.merge.torch_model import skeleton
from edgeft.merge.view import Merged
from edgeft.progress import quiet_libraries

ROW_TOKENS = 512
"""tokens of a row that a block computes at a time; a longer sequence is a row of its own"""
HESSIAN_BYTES = 2 << 30
"""bytes of Hessians that are gathered in one pass"""
PANEL_COLUMNS = 192
"""columns of a Hessian that are updated at a time, each down to the diagonal; fewer make slow products"""
STAGES = (
    r"attn_(q|k|v|qkv|q_a|kv_a_mqa)",
    r"attn_(q|kv|k|v)_b",
    r"attn_output",
    r"ffn_(gate|up)(_exps|_shexp)?",
    r"ffn_down(_exps|_shexp)?",
)
"""GGUF names of a block's linear layers; each stage reads what the stages before it compute"""
FIRST_STAGE_AFTER_ATTENTION = 3
KEPT_STAGES = (2, 4)
"""stages whose inputs are kept: of the last linear layer of attention and of the feed-forward part"""
KEPT_BYTES = 2 << 30
"""bytes of kept inputs at most; a larger layer is computed again"""


@dataclass(frozen=True)
class LinearWeight:
    """A matrix of the block that inputs are multiplied with."""

    names: tuple[str, ...]
    """in the checkpoint: the weights that lie below each other in the matrix"""
    weight: Any
    """torch (rows, columns), float32; shares its memory with the block's parameter"""
    stage: int
    """index in STAGES"""
    module: Any
    """the torch module that holds the parameter"""
    expert: int | None = None
    """index in the first dimension of a 3-D parameter; None for a linear layer"""

    def parts(self) -> Iterator[tuple[str, Any]]:
        """(name in the checkpoint, its rows of the matrix)"""
        yield from zip(self.names, self.weight.chunk(len(self.names)), strict=True)


@dataclass
class InputGroup:
    """Weights that read the same inputs."""

    linears: list[LinearWeight]
    hessian: Any
    """torch (columns, columns), float32: the sum of x xᵀ over the inputs x"""
    count: int = 0
    """inputs"""


@dataclass(frozen=True)
class BlockCall:
    """Arguments of a block after the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Blocks:
    """The blocks of a model; see the module's docstring."""

    def __init__(
        self,
        merged: Merged,
        sequences: Sequence[Sequence[int]],
        threads: int,
        offload: Path | None = None,
    ) -> None:
        """`offload`: a folder for the activations; None keeps them in memory.

        InputError without any tokens, FormatError for a family that transformers does not compute.
        """
        if not any(map(len, sequences)):
            raise InputError("there are no conversations to calibrate on")
        torch = require("torch", "gptq")
        models.transformers_class(merged.config)
        machine.hold_memory()
        torch.set_num_threads(threads)
        self.merged = merged
        self.tokens = sum(map(len, sequences))
        with quiet_libraries(), torch.inference_mode():
            self._model = skeleton(merged)
            shape = (self.tokens, self._model.config.hidden_size)
            self.states = _buffer(shape, offload)
            """inputs of the next block, (tokens, hidden size)"""
            self.attended = _buffer(shape, offload)
            """outputs of the current block's quantized attention, (tokens, hidden size)"""
            columns = 0 if offload else _kept_columns(merged, self.tokens)
            self.kept = torch.zeros(self.tokens * columns)
            """inputs of a stage of KEPT_STAGES, flat; the blocks compute the same without"""
            self.rows: list[tuple[slice, list[BlockCall]]] = []
            """for each row its tokens in `states`, and the call of each block"""
            self._embed(_packed(sequences))

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

    def _embed(self, packs: list[list[Sequence[int]]]) -> None:
        """Compute the first block's inputs, and record the other arguments of every block."""
        import torch

        base = self._model.base_model
        used = np.unique(np.concatenate([ids for pack in packs for ids in pack]))
        name = self.merged.card.hf_name("token_embd.weight") or ""
        embedding = base.get_input_embeddings()
        embedding.padding_idx = None
        values = torch.from_numpy(self.merged.rows(name, used))
        embedding.weight = torch.nn.Parameter(values, requires_grad=False)
        start = 0
        for pack in packs:
            ids = np.searchsorted(used, np.concatenate(pack))
            positions = np.concatenate([np.arange(len(part)) for part in pack])
            span = slice(start, start + len(ids))
            calls: list[BlockCall] = []
            recorded = _recorded(base.layers, self.states[span], calls)
            with recorded, contextlib.suppress(_StopForward):
                base(
                    input_ids=torch.from_numpy(ids)[None],
                    position_ids=torch.from_numpy(positions)[None],
                    use_cache=False,
                )
            self.rows.append((span, calls))
            start = span.stop
        embedding.to("meta")


class Block:
    """One transformer block in memory."""

    def __init__(self, blocks: Blocks, number: int, layer: Any) -> None:
        self.number = number
        self._blocks = blocks
        self._layer = layer
        self.linears = list(_load(blocks.merged, number, layer))
        """the weights that can be quantized"""
        self._attention: _KeptAttention | None = None
        self._kept: list[_LastLinear] = []

    def stages(self) -> Iterator[list[LinearWeight]]:
        """Weights to quantize together: of one stage, with Hessians of at most HESSIAN_BYTES."""
        for stage in range(len(STAGES)):
            if stage == FIRST_STAGE_AFTER_ATTENTION:
                self._keep_attention()
            batch: list[LinearWeight] = []
            size = 0
            for linear in (linear for linear in self.linears if linear.stage == stage):
                needed = 4 * linear.weight.shape[1] ** 2
                if batch and size + needed > HESSIAN_BYTES:
                    yield batch
                    batch, size = [], 0
                batch.append(linear)
                size += needed
            if batch:
                yield batch

    def gather(self, linears: Sequence[LinearWeight]) -> list[InputGroup]:
        """Run the block as far as `linears`, and return the Hessians of their inputs.

        Every weight is in one group. A group of 0 inputs is of an expert that no token was sent to.
        """
        import torch

        kept = self._last_linear(linears)
        recorder = _InputRecorder(linears, None if kept is None else kept.keep)
        with torch.inference_mode(), _watched(linears, recorder):
            for span, calls in self._blocks.rows:
                recorder.begin_row()
                if kept is not None:
                    kept.span = span
                with contextlib.suppress(_StopForward):
                    self._call(span, calls)
        if kept is not None:
            kept.install()
            self._kept.append(kept)
        return recorder.result()

    def fingerprint(self) -> str:
        """sha256 of all weights in their current state."""
        digest = hashlib.sha256()
        for name, weight in self._layer.state_dict().items():
            digest.update(name.encode())
            digest.update(weight.reshape(-1).numpy())
        return digest.hexdigest()

    def run(self) -> None:
        """Replace the hidden states by the block's outputs."""
        import torch

        with torch.inference_mode():
            for span, calls in self._blocks.rows:
                self._blocks.states[span] = self._call(span, calls)[0]

    def close(self) -> None:
        """Release the weights."""
        self.linears.clear()
        for module in self._layer.children():
            module.__dict__.pop("forward", None)

    def _last_linear(self, linears: Sequence[LinearWeight]) -> _LastLinear | None:
        """The place for the inputs of `linears`, where that is one layer whose inputs are kept."""
        linear = linears[0]
        if len(linears) > 1 or linear.stage not in KEPT_STAGES or linear.expert is not None:
            return None
        size = self._blocks.tokens * linear.weight.shape[1]
        if size > len(self._blocks.kept):
            return None
        for kept in self._kept:  # its inputs are overwritten
            kept.end()
        inputs = self._blocks.kept[:size].view(self._blocks.tokens, -1)
        for child in self._layer.children():
            if linear.module is not child and any(m is linear.module for m in child.modules()):
                return _LastLinear(child, linear.module, inputs)
        return None

    def _keep_attention(self) -> None:
        """From here on run attention once for each row: its weights no longer change."""
        if self._attention:
            return
        for child in self._layer.children():
            modules = set(map(id, child.modules()))
            stages = {linear.stage for linear in self.linears if id(linear.module) in modules}
            if stages and max(stages) < FIRST_STAGE_AFTER_ATTENTION:
                self._attention = _KeptAttention(child, self._blocks.attended)
                return

    def _call(self, span: slice, calls: list[BlockCall]) -> Any:
        call = calls[self.number]
        for replaced in (self._attention, *self._kept):
            if replaced:
                replaced.span = span
        output = self._layer(self._blocks.states[span][None], *call.args, **call.kwargs)
        return output[0] if isinstance(output, tuple) else output


class _KeptAttention:
    """Takes the place of an attention module's `forward`: runs it once per row, keeps its output."""

    def __init__(self, module: Any, outputs: Any) -> None:
        self._forward = module.forward
        self._outputs = outputs
        """(tokens, hidden size) of all rows"""
        self._computed: set[int] = set()
        """first tokens of the rows whose output is kept"""
        self._more: tuple[None, ...] | None = None
        """in the place of the attention weights, where the module returns a tuple"""
        self.span = slice(0)
        """tokens of the row that the block computes; set before each call"""
        module.forward = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.span.start not in self._computed:
            self._run(args, kwargs)
        states = self._outputs[self.span][None]
        return states if self._more is None else (states, *self._more)

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        output = self._forward(*args, **kwargs)
        if isinstance(output, tuple):
            output, *more = output
            self._more = (None,) * len(more)
        self._outputs[self.span] = output[0]
        self._computed.add(self.span.start)


class _LastLinear:
    """Takes the place of a module's `forward`: computes its output from the inputs of its last linear layer.

    The first row is computed in both ways. Where the results differ, more follows the linear layer, and
    the module computes as before.
    """

    def __init__(self, module: Any, linear: Any, inputs: Any) -> None:
        """`inputs`: (tokens, columns) of all rows, written by `keep`."""
        self._module, self._forward = module, module.forward
        self._linear, self._inputs = linear, inputs
        self._holds: bool | None = None
        """whether the output is the linear layer's; None before the first row"""
        self._more: tuple[None, ...] | None = None
        """in the place of the attention weights, where the module returns a tuple"""
        self.span = slice(0)
        """tokens of the row that the block computes; set before each call"""

    def keep(self, inputs: Any) -> None:
        """The inputs of the present row, (1, tokens of the row, columns)."""
        self._inputs[self.span] = inputs[0]

    def install(self) -> None:
        self._module.forward = self

    def end(self) -> None:
        """Compute as before from here on: the inputs are no longer there."""
        self._holds = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._holds:
            return self._compared(args, kwargs)
        output = self._last()
        return output if self._more is None else (output, *self._more)

    def _last(self) -> Any:
        """The linear layer's output; its inputs in memory of their own, aligned as the module's are."""
        return self._linear(self._inputs[self.span][None].clone())

    def _compared(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        output = self._forward(*args, **kwargs)
        if self._holds is None:
            first, *more = output if isinstance(output, tuple) else (output,)
            last = self._last()
            self._holds = first.shape == last.shape and bool((first == last).all())
            self._more = (None,) * len(more) if isinstance(output, tuple) else None
        return output


class _StopForward(Exception):
    """Ends a forward pass once all inputs that were asked for are seen."""


class _InputRecorder:
    """Sums up the Hessians of the inputs of some weights."""

    def __init__(
        self, linears: Sequence[LinearWeight], keep: Callable[[Any], None] | None = None
    ) -> None:
        """`keep` gets the inputs of each row."""
        self._keep = keep
        self._linears = {id(linear): linear for linear in linears}
        self._groups: list[InputGroup] = []
        self._group_of: dict[int, InputGroup] = {}
        self._unseen: set[int] = set()
        """weights that were not used in this row; some experts never are"""
        self._last: tuple[Any, InputGroup] | None = None
        """the last inputs, and the group that they were added to"""

    def begin_row(self) -> None:
        self._unseen = set(self._linears)

    def __call__(self, linear: LinearWeight, inputs: Any) -> None:
        """Called before `inputs` (…, columns) are multiplied with the weight."""
        key = id(linear)
        self._unseen.discard(key)
        if self._keep:
            self._keep(inputs)
        if self._last is None or self._last[0] is not inputs:
            self._last = inputs, self._add(linear, inputs)
        elif key not in self._group_of:
            # The same tensor as the weight before it read: one Hessian is enough for both.
            self._last[1].linears.append(linear)
            self._group_of[key] = self._last[1]
        if not self._unseen:
            self._last = None
            raise _StopForward

    def result(self) -> list[InputGroup]:
        """The groups, with whole Hessians; last come weights that no input reached."""
        import torch

        for group in self._groups:
            upper = group.hessian.triu()
            group.hessian = upper + upper.triu(1).T
        unused = [linear for key, linear in self._linears.items() if key not in self._group_of]
        return self._groups + [
            InputGroup([linear], torch.zeros(linear.weight.shape[1:] * 2)) for linear in unused
        ]

    def _add(self, linear: LinearWeight, inputs: Any) -> InputGroup:
        columns = inputs.shape[-1]
        group = self._group_of.get(id(linear))
        if group is None:
            group = InputGroup([linear], inputs.new_zeros(columns, columns))
            self._groups.append(group)
            self._group_of[id(linear)] = group
        flat = inputs.reshape(-1, columns)
        for start in range(0, columns, PANEL_COLUMNS):
            stop = min(start + PANEL_COLUMNS, columns)
            # Above the diagonal only: `result` mirrors it.
            group.hessian[start:stop, start:].addmm_(flat[:, start:stop].T, flat[:, start:])
        group.count += len(flat)
        return group


@contextlib.contextmanager
def _watched(
    linears: Sequence[LinearWeight], record: Callable[[LinearWeight, Any], None]
) -> Iterator[None]:
    """Call `record` with a weight and its inputs before each product with one of `linears`."""
    experts = {p.weight.data_ptr(): p for p in linears if p.expert is not None}
    with contextlib.ExitStack() as stack:
        for linear in linears:
            if linear.expert is None:
                hook = linear.module.register_forward_pre_hook(
                    lambda _, args, linear=linear: record(linear, args[0])
                )
                stack.callback(hook.remove)
        if experts:
            stack.enter_context(_experts_watched(experts, record))
        yield


@contextlib.contextmanager
def _experts_watched(
    experts: Mapping[int, LinearWeight], record: Callable[[LinearWeight, Any], None]
) -> Iterator[None]:
    """Replace `torch.nn.functional.linear`, which transformers calls with one expert's slice.

    `experts`: address of a slice of a 3-D parameter -> the weight there.
    """
    import torch

    functional: Any = torch.nn.functional
    original = functional.linear

    def linear(inputs: Any, weight: Any, bias: Any = None) -> Any:
        expert = experts.get(weight.data_ptr())
        if expert is not None and weight.shape == expert.weight.shape:
            record(expert, inputs)
        return original(inputs, weight, bias)

    functional.linear = linear
    try:
        yield
    finally:
        functional.linear = original


@contextlib.contextmanager
def _recorded(layers: Any, first_inputs: Any, calls: list[BlockCall]) -> Iterator[None]:
    """Let the blocks record their calls instead of computing.

    The first block's hidden states are written into `first_inputs` (tokens, hidden size).
    """

    def record(states: Any, *args: Any, **kwargs: Any) -> Any:
        if not calls:
            first_inputs.copy_(states[0])
        calls.append(BlockCall(args, kwargs))
        if len(calls) == len(layers):
            raise _StopForward
        return states

    for layer in layers:
        layer.forward = record
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _kept_columns(merged: Merged, tokens: int) -> int:
    """Columns of the inputs that are kept (KEPT_STAGES): those of the widest layer that fits KEPT_BYTES and
    half of the free memory; 0 where none does. Experts see few tokens each, theirs are not kept."""
    columns = [
        shape[1]
        for name, shape in merged.shapes.items()
        if len(shape) == 2
        and stage_of(merged.card, name) in KEPT_STAGES
        and len(models.generalize(name)[1]) == 1
    ]
    room = min(KEPT_BYTES, machine.available_memory() // 2)
    return max((n for n in columns if 4 * n * tokens <= room), default=0)


def _buffer(shape: tuple[int, int], folder: Path | None) -> Any:
    """Zeros in memory, or in a file of `folder` that has no name and ends with the process."""
    import torch

    if folder is None:
        return torch.zeros(shape)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        # A write to a page that the disk has no room for would end the process.
        os.posix_fallocate(file.fileno(), 0, 4 * math.prod(shape))
        return torch.from_file(file.name, True, math.prod(shape)).view(shape)


def _load(merged: Merged, number: int, layer: Any) -> Iterator[LinearWeight]:
    """Give a block of the skeleton its weights; yields those that can be quantized.

    The memory is torch's own: products differ in their last bits where an array is aligned otherwise.
    """
    import torch

    card = merged.card
    prefix = next(name.partition("{i}")[0] + str(number) for name in card.tensors if "{i}" in name)
    state: dict[str, Any] = {}
    for key, empty in layer.state_dict().items():
        module = layer.get_submodule(key.rpartition(".")[0])
        name = f"{prefix}.{key}"
        general, numbers = models.generalize(name)
        if general not in card.fused:
            stored = card.in_checkpoint(name)
            state[key] = torch.from_numpy(merged.tensor(stored)).view(empty.shape).clone()
            stage = stage_of(card, stored)
            if stage is not None and empty.ndim == 2:
                yield LinearWeight((stored,), state[key], stage, module)
            continue
        state[key] = torch.empty(empty.shape)
        for expert, matrix in enumerate(state[key]):
            parts = [models.fill(part, (*numbers, expert)) for part in card.fused[general]]
            rows = len(matrix) // len(parts)
            for i, part in enumerate(parts):
                matrix[i * rows : (i + 1) * rows] = torch.from_numpy(merged.tensor(part))
            stage = stage_of(card, parts[0])
            if stage is not None:
                yield LinearWeight(tuple(parts), matrix, stage, module, expert)
    layer.load_state_dict(state, assign=True)


def stage_of(card: models.Card, name: str) -> int | None:
    """Index in STAGES of a weight of the checkpoint; None for one that is no linear layer."""
    gguf = "".join(card.gguf_names(name)[0][:1])
    role = gguf.removesuffix(".weight").rpartition(".")[2]
    stages = (i for i, pattern in enumerate(STAGES) if re.fullmatch(pattern, role))
    return next(stages, None) if gguf.endswith(".weight") else None


def _packed(sequences: Sequence[Sequence[int]]) -> list[list[Sequence[int]]]:
    """Rows of neighbouring sequences: at most ROW_TOKENS tokens, or one longer sequence."""
    packs: list[list[Sequence[int]]] = []
    room = 0
    for ids in filter(len, sequences):
        if len(ids) > room:
            packs.append([])
            room = ROW_TOKENS
        packs[-1].append(ids)
        room -= len(ids)
    return packs
