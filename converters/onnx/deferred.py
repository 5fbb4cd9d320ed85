"""A model whose matrices are recipes: what is done with one is noted, and done when it is asked for.

    model = deferred_model(merged)                    # transformers' modules, without memory
    packed = torch.cat([layer.q_proj.weight, layer.k_proj.weight]).T
    leaves(packed)                                    # the checkpoint's tensors in it
    evaluate(packed, merged.tensor)                   # numpy, of whatever the reader gives

So code that was written for whole models, as onnxruntime-genai's builder, runs on a model of any
size: it arranges shapes, and each matrix is in memory while it is written.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft import models
from edgeft.errors import InputError
from edgeft.merge.torch_model import skeleton
from edgeft.merge.view import Merged
from edgeft.models import chatglm

Read = Callable[[str], npt.NDArray[Any]]
"""name of a tensor of the checkpoint -> its values"""


def deferred_model(merged: Merged) -> Any:
    """transformers' model, its vectors in memory, its matrices deferred.

    FormatError for a family that transformers does not compute.
    """
    import torch

    model = skeleton(merged)
    modules = dict(model.named_modules())
    for full, empty in model.named_parameters(remove_duplicate=False):
        module, _, own = full.rpartition(".")
        name, rows = _source(merged, full)
        general, numbers = models.generalize(full)
        if general in merged.card.fused:
            values = _experts(merged, general, numbers, len(empty))
        elif name not in merged.shapes:
            raise InputError(f"the model has no weights for {name}")
        elif empty.ndim == 1:
            values = torch.from_numpy(merged.tensor(name))[rows]
        else:
            values = _leaf(name, merged.shapes[name])
            values = values if rows == slice(None) else values[rows]
        modules[module]._parameters[own] = torch.nn.Parameter(values, requires_grad=False)
    return model


def _source(merged: Merged, full: str) -> tuple[str, slice]:
    """Which tensor of the checkpoint a parameter is, or which rows of one."""
    if merged.card.family == chatglm.FAMILY:
        return chatglm.glm_source(merged.config, full)
    name = merged.card.in_checkpoint(full)
    if merged.tied and name == merged.card.hf_name("output.weight"):
        name = merged.card.hf_name("token_embd.weight") or name
    return name, slice(None)


def is_deferred(value: Any) -> bool:
    return isinstance(value, _deferred())


def leaves(value: Any) -> tuple[str, ...]:
    """The checkpoint's tensors that a deferred one is made of, each once."""
    if isinstance(value.recipe, str):
        return (value.recipe,)
    _, args, named = value.recipe
    found = [leaves(part) for part in _flat((*args, *named.values())) if is_deferred(part)]
    return tuple(dict.fromkeys(name for names in found for name in names))


def evaluate(value: Any, read: Read) -> npt.NDArray[Any]:
    """A deferred tensor, of the values that `read` gives; they may have any type."""
    found: npt.NDArray[Any] = np.ascontiguousarray(_evaluate(value, read).numpy())
    return found


def _evaluate(value: Any, read: Read) -> Any:
    import torch

    if isinstance(value, (list, tuple)):
        return type(value)(_evaluate(part, read) for part in value)
    if not is_deferred(value):
        return value
    if isinstance(value.recipe, str):
        values = np.require(read(value.recipe), requirements="W")
        return torch.from_numpy(values).view(value.shape)
    function, args, named = value.recipe
    return function(
        *_evaluate(tuple(args), read), **{key: _evaluate(arg, read) for key, arg in named.items()}
    )


def _flat(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return [part for item in value for part in _flat(item)]
    return [value]


def _leaf(name: str, shape: tuple[int, ...]) -> Any:
    import torch

    leaf = torch.empty(shape, device="meta").as_subclass(_deferred())
    leaf.recipe = name
    return leaf


def _experts(merged: Merged, general: str, numbers: tuple[int, ...], count: int) -> Any:
    """The parameter in which transformers holds the experts of a layer."""
    import torch

    def expert(number: int) -> Any:
        names = (models.fill(part, (*numbers, number)) for part in merged.card.fused[general])
        return torch.cat([_leaf(name, merged.shapes[name]) for name in names])

    return torch.stack([expert(number) for number in range(count)])


@functools.cache
def _deferred() -> Any:
    import torch

    class Deferred(torch.Tensor):  # type: ignore[misc, unused-ignore]
        recipe: Any
        """the name of a tensor of the checkpoint, or (function, arguments, named arguments)"""

        @classmethod
        def __torch_function__(
            cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            named = kwargs or {}
            found = super().__torch_function__(func, types, args, named)
            several = isinstance(found, (list, tuple))
            for number, part in enumerate(found if several else [found]):
                if not isinstance(part, cls) or any(part is arg for arg in args):
                    continue  # what works in place gives what it was given
                if several:
                    part.recipe = (_item(func, number), args, named)
                else:
                    part.recipe = (func, args, named)
            return found

    return Deferred


def _item(function: Callable[..., Any], number: int) -> Callable[..., Any]:
    return lambda *args, **named: function(*args, **named)[number]
