"""The tensors of one module of an adapter -> what is added to which weight of the base.

    for name, delta in module_deltas(adapter, base, module, parts, square):
        name     # of a weight in the checkpoint

A module is one of transformers: a linear layer, an embedding or a parameter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from edgeft import models
from edgeft.adapter.config import scaling
from edgeft.adapter.deltas import (
    BiasDelta,
    Delta,
    DoRA,
    Kronecker,
    LazyTensor,
    LoRA,
    Product,
    Read,
    Scaled,
)
from edgeft.errors import AdapterError
from edgeft.weights.checkpoint import Checkpoint, as_rows

OTHER_BASE = "it was trained on another base model"


class Base(NamedTuple):
    """The model that is adapted."""

    folder: Path
    weights: Checkpoint
    card: models.Card
    tied: tuple[str, str] | None
    """embedding and output layer, where they share one weight"""

    def stored(self, name: str) -> str:
        """The tensor of the checkpoint that holds a weight."""
        return self.tied[0] if self.tied and name == self.tied[1] else name

    def shape(self, name: str) -> tuple[int, ...]:
        return self.weights.tensors[self.stored(name)].shape

    def reader(self, name: str) -> Read:
        return lambda rows: self.weights.rows(self.stored(name), rows)


@dataclass
class AdapterTensors:
    """The tensors of one adapter."""

    parts: dict[str, dict[str, LazyTensor]] = field(default_factory=dict)
    """module in transformers -> role (`names.ROLES`) -> tensor"""
    saved: dict[str, LazyTensor] = field(default_factory=dict)
    """weight -> what was trained as a whole, for this module alone"""
    base: dict[str, LazyTensor] = field(default_factory=dict)
    """weight -> the base's own, saved along (resized embeddings), for all modules that share it"""


class Adapter(NamedTuple):
    """One adapter with its file read."""

    path: Path
    weight: float
    config: dict[str, Any]
    """adapter_config.json"""
    tensors: AdapterTensors

    def scale(self, module: str, rank: int | None) -> float:
        """Factor of B·A in the sum of adapters."""
        return self.weight * scaling(self.path, self.config, module, rank)


Named = tuple[str, Delta]
"""(name of a weight in the checkpoint, its delta)"""


def module_deltas(
    adapter: Adapter, base: Base, module: str, parts: dict[str, LazyTensor], square: bool
) -> Iterator[Named]:
    """The deltas of one module. `square`: whether square weights are stored as (in, out)."""
    peft_type = adapter.config["peft_type"]
    if peft_type == "IA3":
        yield from _scaled(adapter, base, module, parts)
    elif peft_type in ("LOHA", "LOKR"):
        delta = _product if peft_type == "LOHA" else _kronecker
        yield f"{base.card.in_checkpoint(module)}.weight", delta(adapter, module, parts)
    elif peft_type not in ("LORA", "ADALORA"):
        raise AdapterError(
            f"{adapter.path}: {module} has {', '.join(parts)}, which {peft_type} has not"
        )
    else:
        yield from _lora_deltas(adapter, base, module, parts, square)


def _lora_deltas(
    adapter: Adapter, base: Base, module: str, parts: dict[str, LazyTensor], square: bool
) -> Iterator[Named]:
    """LoRA, DoRA and AdaLoRA on a linear layer, an embedding or a parameter."""
    if "E" in parts and 0 in parts["E"].shape:
        return  # AdaLoRA left no rank to this module
    embedding = "embedding_A" in parts or "embedding_B" in parts
    a, b = _pair(adapter, module, parts, embedding)
    if embedding:
        # The rows of an embedding are inputs, so the delta is (B·A)ᵀ.
        yield _linear_delta(adapter, base, module, parts, a, b, transposed=True)
    elif parameters := _parameters(base, adapter.config, module):
        parameter = _wrapped(adapter, parameters, module)
        yield from _parameter_deltas(adapter, base, parameter, a, b)
    else:
        transposed = _is_transposed(base, module, parts, square)
        yield _linear_delta(adapter, base, module, parts, a, b, transposed)
        if "bias" in parts:
            name = f"{base.card.in_checkpoint(module)}.bias"
            yield name, BiasDelta(parts["bias"], adapter.scale(module, a.shape[0]))


def _scaled(
    adapter: Adapter, base: Base, module: str, parts: dict[str, LazyTensor]
) -> Iterator[Named]:
    """IA3 on the inputs of a linear layer, or on its outputs and their bias.

    peft 0.21, tuners/ia3/layer.py: `Linear.merge`.
    """
    factors = parts.get("ia3_l")
    name = base.card.in_checkpoint(module)
    if parts.keys() != {"ia3_l"} or factors is None:
        raise AdapterError(f"{adapter.path}: {module} has {', '.join(parts)}, and not ia3_l alone")
    if base.stored(f"{name}.weight") not in base.weights.tensors:
        raise absent(adapter.path, base, f"{name}.weight")
    shape = as_rows(base.shape(f"{name}.weight"))
    outputs = len(factors.shape) == 2 and factors.shape[1] == 1
    if adapter.config.get("fan_in_fan_out"):
        factors = factors.transposed()
    if factors.shape not in ((shape[0], 1), (1, shape[-1])):
        raise AdapterError(f"{adapter.path}: {factors.name} is {factors.shape}, {name} {shape}")
    yield f"{name}.weight", Scaled(factors, shape)
    if outputs and f"{name}.bias" in base.weights.tensors:
        vector = factors.view(lambda raw: raw.reshape(-1))
        yield f"{name}.bias", Scaled(vector, vector.shape)


def _product(adapter: Adapter, module: str, parts: dict[str, LazyTensor]) -> Product:
    """LoHa. peft 0.21, tuners/loha/layer.py: `get_delta_weight`."""
    one, other = (_factors(adapter, module, parts, f"hada_{w}") for w in ("w1", "w2"))
    if len(parts) != 4 or one.shape != other.shape:
        raise AdapterError(f"{adapter.path}: {module} is no LoHa of a linear layer")
    return Product(one, other, adapter.scale(module, one.right.shape[0]))


def _kronecker(adapter: Adapter, module: str, parts: dict[str, LazyTensor]) -> Kronecker:
    """LoKr. peft 0.21, tuners/lokr/layer.py: `get_delta_weight`."""
    outer, inner = (
        parts[f"lokr_{w}"]
        if f"lokr_{w}" in parts
        else _factors(adapter, module, parts, f"lokr_{w}")
        for w in ("w1", "w2")
    )
    ranks = {part.right.shape[0] for part in (outer, inner) if isinstance(part, LoRA)}
    if len(outer.shape) != 2 or len(inner.shape) != 2 or len(ranks) > 1 or 0 in inner.shape:
        raise AdapterError(f"{adapter.path}: {module} is no LoKr of a linear layer")
    return Kronecker(outer, inner, adapter.scale(module, min(ranks, default=None)))


def _factors(adapter: Adapter, module: str, parts: dict[str, LazyTensor], name: str) -> LoRA:
    """The product of name_a and name_b."""
    a, b = parts.get(f"{name}_a"), parts.get(f"{name}_b")
    if a is None or b is None or len(a.shape) != 2 or len(b.shape) != 2 or a.shape[1] != b.shape[0]:
        raise AdapterError(
            f"{adapter.path}: {module} has no whole {name}", "is the adapter complete?"
        )
    return LoRA(a, b, 1.0)


def absent(adapter: Path, base: Base, name: str) -> AdapterError:
    return AdapterError(
        f"{adapter}: adapts {name}, which {base.folder.name} does not have", OTHER_BASE
    )


def _pair(
    adapter: Adapter, module: str, parts: dict[str, LazyTensor], embedding: bool
) -> tuple[LazyTensor, LazyTensor]:
    """A and B of a module; AdapterError where its tensors do not belong together."""
    path = adapter.path
    pair = ("embedding_A", "embedding_B") if embedding else ("A", "B")
    if missing := [role for role in pair if role not in parts]:
        raise AdapterError(f"{path}: {module} has no lora_{missing[0]}", "is the adapter complete?")
    more = {"magnitude"} if embedding else {"magnitude", "bias"}
    if adapter.config["peft_type"] == "ADALORA":
        more = {"E"}
        if "E" not in parts or parts["E"].shape != (parts["A"].shape[0], 1):
            raise AdapterError(f"{path}: {module} has no lora_E of its rank")
    if extra := parts.keys() - pair - more:
        raise AdapterError(f"{path}: {parts[min(extra)].name} does not belong to a LoRA layer")
    a, b = (parts[role] for role in pair)
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or 0 in a.shape:
        raise AdapterError(f"{path}: {a.name} is {a.shape}, {b.name} is {b.shape}")
    if bool(adapter.config.get("use_dora")) != ("magnitude" in parts):
        has = "has a DoRA magnitude" if "magnitude" in parts else "has no DoRA magnitude"
        raise AdapterError(f"{path}: {module} {has}, which its configuration contradicts")
    return a, b


def _linear_delta(
    adapter: Adapter,
    base: Base,
    module: str,
    parts: dict[str, LazyTensor],
    a: LazyTensor,
    b: LazyTensor,
    transposed: bool,
) -> Named:
    """LoRA or DoRA on a linear layer; `transposed`: the weight is stored as (in, out).

    Experts that were modules in transformers 4 are linear layers here. peft 0.21 fuses such adapters
    on loading, which makes the scale of rsLoRA sqrt(2) times the one of training.
    """
    scale = adapter.scale(module, a.shape[0])
    left, right = (a.transposed(), b.transposed()) if transposed else (b, a)
    lora = LoRA(left, right, scale, parts.get("E"))
    name = f"{base.card.in_checkpoint(module)}.weight"
    if "magnitude" not in parts:
        return name, lora
    return name, _dora(adapter.path, lora, parts["magnitude"], transposed)


def _dora(path: Path, lora: LoRA, magnitude: LazyTensor, by_column: bool) -> DoRA:
    outputs = lora.shape[1] if by_column else lora.shape[0]
    if magnitude.shape != (outputs,):
        raise AdapterError(
            f"{path}: {magnitude.name} is {magnitude.shape}, the weight {lora.shape}"
        )
    return DoRA(lora, magnitude, by_column)


def _parameter_deltas(
    adapter: Adapter, base: Base, parameter: str, a: LazyTensor, b: LazyTensor
) -> Iterator[Named]:
    """LoRA on a parameter; on each expert's own weights where the parameter stacks experts.

    peft 0.21, tuners/lora/layer.py: `ParamWrapper.get_delta_weight`.
    """
    general, numbers = models.generalize(parameter)
    if general not in base.card.fused:
        scale = adapter.scale(parameter, a.shape[0])
        yield base.card.in_checkpoint(parameter), LoRA(b, a, scale)
        return
    parts = [models.fill(part, numbers) for part in base.card.fused[general]]
    count = 0
    while "{e}" in parts[0] and parts[0].replace("{e}", str(count)) in base.weights.tensors:
        count += 1
    if count == 0 or a.shape[0] % count or b.shape[0] % len(parts):
        raise AdapterError(
            f"{adapter.path}: the adapter of {parameter} is not for {count} experts", OTHER_BASE
        )
    rank, rows = a.shape[0] // count, b.shape[0] // len(parts)
    scale = adapter.scale(parameter, rank)
    for expert in range(count):
        right = a.view(lambda raw, e=expert: raw.reshape(count, rank, -1)[e])  # type: ignore[misc]
        left = b.view(lambda raw, e=expert: raw.reshape(-1, rank, count)[:, :, e])  # type: ignore[misc]
        for i, part in enumerate(parts):
            span = slice(i * rows, (i + 1) * rows)
            part_left = left.view(lambda raw, span=span: raw[span])  # type: ignore[misc]
            yield part.replace("{e}", str(expert)), LoRA(part_left, right, scale)


def square_is_transposed(adapter: Adapter, base: Base) -> bool:
    """Whether square weights are stored as (in, out), as Conv1D stores them.

    peft keeps one flag (`fan_in_fan_out`) for the whole adapter, the last module's. Shapes say more:
    if any weight of another shape is transposed, the square ones are as well.
    """
    flag = bool(adapter.config.get("fan_in_fan_out"))
    return flag or any(
        _is_transposed(base, module, parts, flag)
        for module, parts in adapter.tensors.parts.items()
        if set("AB") <= parts.keys() and parts["A"].shape[-1:] != parts["B"].shape[:1]
    )


def _is_transposed(base: Base, module: str, parts: dict[str, LazyTensor], square: bool) -> bool:
    """Whether a weight is stored as (in, out); `square`: the answer for square weights."""
    name = base.stored(f"{base.card.in_checkpoint(module)}.weight")
    info = base.weights.tensors.get(name)
    delta = (parts["B"].shape[0], parts["A"].shape[-1])
    if info is None or as_rows(info.shape) != delta[::-1]:
        return False
    return square if delta[0] == delta[1] else True


def _parameters(base: Base, config: dict[str, Any], module: str) -> list[str]:
    """Names of a module's parameters that are adapted (`target_parameters`), in peft's order."""
    targets: list[str] = config.get("target_parameters") or []
    module = module.replace(".base_layer", "")
    general, numbers = models.generalize(module)
    names = [
        models.fill(name, numbers) for name in base.card.fused if name.rpartition(".")[0] == general
    ]
    for leaf in sorted({target.rpartition(".")[2] for target in targets}):
        name = f"{module}.{leaf}"
        if name not in names and base.card.in_checkpoint(name) in base.weights.tensors:
            names.append(name)
    return [name for name in names if any(f".{name}".endswith(f".{t}") for t in targets)]


def _wrapped(adapter: Adapter, parameters: list[str], module: str) -> str:
    """The parameter that a wrapper adapts.

    peft wraps a module once for each of its adapted parameters, and the first wrapper is innermost.
    peft 0.21, tuners/tuners_utils.py: `_inject_parameters`.
    """
    outermost = module.replace(".base_layer", "")
    for depth, parameter in enumerate(reversed(parameters)):
        if outermost + ".base_layer" * depth not in adapter.tensors.parts:
            raise AdapterError(
                f"{adapter.path} lacks {parameter}, which its configuration adapts",
                "is the adapter complete?",
            )
    index = len(parameters) - 1 - module.count(".base_layer")
    if index < 0 or adapter.tensors.parts[module].keys() != {"A", "B"}:
        raise AdapterError(f"{adapter.path}: {module} is no LoRA of {', '.join(parameters)}")
    return parameters[index]
