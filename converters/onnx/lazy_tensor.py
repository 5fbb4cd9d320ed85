"""The Merged view -> transformers' model whose matrices are lazy: computed when they are asked for.

    model = lazy_model(merged)                        # its matrices take no memory
    packed = torch.cat([layer.q_proj.weight, layer.k_proj.weight]).T
    packed.sources()                                  # names of the checkpoint's tensors in it
    packed.evaluate(merged.tensor)                    # numpy; the reader may give any values

torch operations on a lazy tensor are recorded and executed only when the values are needed, as in
llama.cpp's gguf-py/gguf/lazy.py. So code that arranges whole models, as onnxruntime-genai's builder
does, runs on a model of any size, and each matrix is in memory only while it is written.

This module imports torch: import it inside functions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgeft import models
from edgeft.errors import InputError
from edgeft.merge.torch_model import skeleton
from edgeft.merge.view import Merged
from edgeft.models import chatglm

Read = Callable[[str], npt.NDArray[Any]]
"""name of a tensor of the checkpoint -> its values"""


@dataclass(frozen=True)
class Operation:
    """A torch function and its arguments."""

    function: Callable[..., Any]
    args: Any
    kwargs: dict[str, Any]
    item: int | None = None
    """index of the tensor in the function's results; None for a single result"""

    def __call__(self, read: Read) -> Any:
        args = _evaluate(tuple(self.args), read)
        kwargs = {key: _evaluate(value, read) for key, value in self.kwargs.items()}
        result = self.function(*args, **kwargs)
        return result if self.item is None else result[self.item]


class LazyTorchTensor(torch.Tensor):  # type: ignore[misc, unused-ignore]
    """A shape without values; `lazy_tensor` makes one of a tensor of the checkpoint."""

    origin: str | Operation
    """name of a tensor of the checkpoint, or the operation that computes this one"""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = super().__torch_function__(func, types, args, kwargs)
        several = isinstance(result, (list, tuple))
        for number, tensor in enumerate(result if several else [result]):
            # An operation in place returns its argument, which keeps its origin.
            if isinstance(tensor, cls) and not any(tensor is arg for arg in args):
                tensor.origin = Operation(func, args, kwargs, number if several else None)
        return result

    def sources(self) -> tuple[str, ...]:
        """Names of the checkpoint's tensors that this one is computed from, each once."""
        if isinstance(self.origin, str):
            return (self.origin,)
        inputs = _flat((*self.origin.args, *self.origin.kwargs.values()))
        names = (lazy.sources() for lazy in inputs if isinstance(lazy, LazyTorchTensor))
        return tuple(dict.fromkeys(name for some in names for name in some))

    def evaluate(self, read: Read) -> npt.NDArray[Any]:
        """The values, computed from those that `read` gives, in their type."""
        values: npt.NDArray[Any] = np.ascontiguousarray(_evaluate(self, read).numpy())
        return values


def lazy_tensor(name: str, shape: tuple[int, ...]) -> LazyTorchTensor:
    """A tensor of the checkpoint."""
    tensor: LazyTorchTensor = torch.empty(shape, device="meta").as_subclass(LazyTorchTensor)
    tensor.origin = name
    return tensor


def lazy_model(merged: Merged) -> Any:
    """transformers' model with its vectors in memory and its matrices lazy.

    FormatError for a family that transformers does not compute.
    """
    model = skeleton(merged)
    modules = dict(model.named_modules())
    for full, empty in model.named_parameters(remove_duplicate=False):
        module, _, leaf = full.rpartition(".")
        name, rows = _source(merged, full)
        general, numbers = models.generalize(full)
        if general in merged.card.fused:
            values = _experts(merged, general, numbers, len(empty))
        elif name not in merged.shapes:
            raise InputError(f"the model has no weights for {name}")
        elif empty.ndim == 1:
            values = torch.from_numpy(merged.tensor(name))[rows]
        else:
            values = lazy_tensor(name, merged.shapes[name])
            values = values if rows == slice(None) else values[rows]
        modules[module]._parameters[leaf] = torch.nn.Parameter(values, requires_grad=False)
    return model


def _source(merged: Merged, full: str) -> tuple[str, slice]:
    """The checkpoint's tensor, and its rows, that a parameter of transformers holds."""
    if merged.card.family == chatglm.FAMILY:
        return chatglm.glm_source(merged.config, full)
    name = merged.card.in_checkpoint(full)
    if merged.tied and name == merged.card.hf_name("output.weight"):
        name = merged.card.hf_name("token_embd.weight") or name
    return name, slice(None)


def _experts(merged: Merged, general: str, numbers: tuple[int, ...], count: int) -> Any:
    """The 3-D parameter that holds the experts of a layer, (experts, rows, columns)."""

    def expert(number: int) -> Any:
        names = (models.fill(part, (*numbers, number)) for part in merged.card.fused[general])
        return torch.cat([lazy_tensor(name, merged.shapes[name]) for name in names])

    return torch.stack([expert(number) for number in range(count)])


def _evaluate(value: Any, read: Read) -> Any:
    """An argument of an operation, with values in the place of its lazy tensors."""
    if isinstance(value, (list, tuple)):
        return type(value)(_evaluate(part, read) for part in value)
    if not isinstance(value, LazyTorchTensor):
        return value
    if isinstance(value.origin, str):
        values = np.require(read(value.origin), requirements="W")
        return torch.from_numpy(values).view(value.shape)
    return value.origin(read)


def _flat(value: Any) -> list[Any]:
    """The items of nested lists and tuples."""
    if isinstance(value, (list, tuple)):
        return [part for item in value for part in _flat(item)]
    return [value]
