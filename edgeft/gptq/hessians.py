"""Forward passes of a block -> Hessians of the inputs of some weights.

    recorder = InputRecorder(linears)
    with watched_inputs(linears, recorder):
        ...                                # recorder.begin_row(), then a forward pass that StopForward ends
    groups = recorder.result()

Inputs are seen by forward pre-hooks on the linear layers. Experts in one 3-D parameter have no layers
of their own: while these are watched, `torch.nn.functional.linear` is replaced.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeft.gptq.linear_weights import LinearWeight

PANEL_COLUMNS = 192
"""columns of a Hessian that are updated at a time, each down to the diagonal; fewer make slow products"""


@dataclass
class InputGroup:
    """Weights that read the same inputs."""

    linears: list[LinearWeight]
    hessian: Any
    """torch (columns, columns), float32: the sum of x xᵀ over the inputs x"""
    count: int = 0
    """inputs"""


class StopForward(Exception):
    """Ends a forward pass once all inputs that were asked for are seen."""


class InputRecorder:
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
            raise StopForward

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
        from edgeft.cpu_products import product

        columns = inputs.shape[-1]
        group = self._group_of.get(id(linear))
        if group is None:
            group = InputGroup([linear], inputs.new_zeros(columns, columns))
            self._groups.append(group)
            self._group_of[id(linear)] = group
        flat = inputs.reshape(-1, columns)
        by_column = flat.T.contiguous()
        for start in range(0, columns, PANEL_COLUMNS):
            stop = min(start + PANEL_COLUMNS, columns)
            # Above the diagonal only: `result` mirrors it.
            group.hessian[start:stop, start:] += product(by_column[start:stop], by_column[start:])
        group.count += len(flat)
        return group


@contextlib.contextmanager
def watched_inputs(
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
