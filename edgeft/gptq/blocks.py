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

Sequences are packed side by side into rows of about ROW_TOKENS tokens. Each has positions of its
own, from which transformers sees that they must not attend to each other (masking_utils.py:
`find_packed_sequence_indices`).
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeft import machine, models
from edgeft.errors import InputError, require
from edgeft.gptq.hessians import InputGroup, InputRecorder, StopForward, watched_inputs
from edgeft.gptq.kept_outputs import KEPT_STAGES, KeptAttention, LastLinear, kept_columns
from edgeft.gptq.linear_weights import STAGES, LinearWeight, load_linears
from edgeft.merge.torch_model import skeleton
from edgeft.merge.view import Merged
from edgeft.progress import quiet_libraries

ROW_TOKENS = 512
"""tokens of a row that a block computes at a time; a longer sequence is a row of its own"""
HESSIAN_BYTES = 2 << 30
"""bytes of Hessians that are gathered in one pass"""
FIRST_STAGE_AFTER_ATTENTION = 3
"""index in STAGES"""


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
            columns = 0 if offload else kept_columns(merged, self.tokens)
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
            with recorded, contextlib.suppress(StopForward):
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
        from edgeft.cpu_products import use_in_linears

        self.number = number
        self._blocks = blocks
        self._layer = layer
        self.linears = list(load_linears(blocks.merged, number, layer))
        """the weights that can be quantized"""
        use_in_linears(layer)
        self._attention: KeptAttention | None = None
        self._kept: list[LastLinear] = []

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
        recorder = InputRecorder(linears, None if kept is None else kept.keep)
        with torch.inference_mode(), watched_inputs(linears, recorder):
            for span, calls in self._blocks.rows:
                recorder.begin_row()
                if kept is not None:
                    kept.span = span
                with contextlib.suppress(StopForward):
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

    def _last_linear(self, linears: Sequence[LinearWeight]) -> LastLinear | None:
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
                return LastLinear(child, linear.module, inputs)
        return None

    def _keep_attention(self) -> None:
        """From here on run attention once for each row: its weights no longer change."""
        if self._attention:
            return
        for child in self._layer.children():
            modules = set(map(id, child.modules()))
            stages = {linear.stage for linear in self.linears if id(linear.module) in modules}
            if stages and max(stages) < FIRST_STAGE_AFTER_ATTENTION:
                self._attention = KeptAttention(child, self._blocks.attended)
                return

    def _call(self, span: slice, calls: list[BlockCall]) -> Any:
        call = calls[self.number]
        for replaced in (self._attention, *self._kept):
            if replaced:
                replaced.span = span
        output = self._layer(self._blocks.states[span][None], *call.args, **call.kwargs)
        return output[0] if isinstance(output, tuple) else output


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
            raise StopForward
        return states

    for layer in layers:
        layer.forward = record
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _buffer(shape: tuple[int, int], folder: Path | None) -> Any:
    """Zeros in memory, or in a file of `folder` that has no name and ends with the process."""
    import torch

    if folder is None:
        return torch.zeros(shape)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        # A write to a page that the disk has no room for would end the process.
        os.posix_fallocate(file.fileno(), 0, 4 * math.prod(shape))
        return torch.from_file(file.name, True, math.prod(shape)).view(shape)


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
