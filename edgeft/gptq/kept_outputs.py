"""Modules of a block whose weights no longer change -> their outputs without computing them again.

attention = KeptAttention(layer.self_attn, outputs)      # runs once for each row
last = LastLinear(layer.mlp, layer.mlp.down_proj, inputs)
"""

from __future__ import annotations

from typing import Any

from edgeft import machine, models
from edgeft.gptq.linear_weights import stage_of
from edgeft.merge.view import Merged

KEPT_STAGES = (2, 4)
"""stages whose inputs are kept: of the last linear layer of attention and of the feed-forward part"""
KEPT_BYTES = 2 << 30
"""bytes of kept inputs at most; a larger layer is computed again"""


class KeptAttention:
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


class LastLinear:
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


def kept_columns(merged: Merged, tokens: int) -> int:
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
