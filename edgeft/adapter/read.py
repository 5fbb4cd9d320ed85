"""Adapters in peft's format -> the delta of each weight of their base, tensor by tensor.

    deltas = read_adapters([Weighted(adapter)], base, Checkpoint(base), card, config)
    deltas["model.layers.0.mlp.up_proj.weight"].delta(rows, before, read)    # s·B·A of these rows

Nothing is merged here, and torch is not needed. The deltas are those of peft's live adapter (peft
0.21.2). Every tensor of an adapter must belong to a weight of the base: one that is left over is an
error, not a warning.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edgeft import models, store
from edgeft.adapter.config import read_adapter_config, scaling
from edgeft.adapter.deltas import (
    BiasDelta,
    Delta,
    DoRA,
    LazyTensor,
    LoRA,
    Read,
    TokenRows,
    WeightDelta,
)
from edgeft.adapter.tensors import AdapterTensors, read_tensors
from edgeft.errors import AdapterError
from edgeft.weights.checkpoint import Checkpoint, as_rows

OTHER_BASE = "it was trained on another base model"


class Weighted(NamedTuple):
    """One of the adapters that are merged together: Σ weight·s·B·A."""

    path: Path
    weight: float = 1.0


class _Base(NamedTuple):
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


class _Adapter(NamedTuple):
    """One adapter with its file read."""

    path: Path
    weight: float
    config: dict[str, Any]
    """adapter_config.json"""
    tensors: AdapterTensors

    def scale(self, module: str, rank: int) -> float:
        """Factor of B·A in the sum of adapters."""
        return self.weight * scaling(self.path, self.config, module, rank)


Named = tuple[str, Delta]
"""(name of a weight in the checkpoint, its delta)"""


def read_adapters(
    adapters: Sequence[Weighted],
    base: Path,
    weights: Checkpoint,
    card: models.Card,
    config: dict[str, Any],
) -> dict[str, WeightDelta]:
    """Name of a tensor in the base -> its delta.

    Where embedding and output layer share a weight, each has an entry of its own.
    AdapterError: not an adapter, of another base, or a kind that edgeft cannot merge.
    """
    ends = (card.hf_name("token_embd.weight"), card.hf_name("output.weight"))
    tied = ends if card.value(config, "tie_word_embeddings") and None not in ends else None
    model = _Base(base, weights, card, tied)  # type: ignore[arg-type]
    total: dict[str, WeightDelta] = {}
    for adapter in adapters:
        for name, change in _read(adapter, model, alone=len(adapters) == 1).items():
            known = total.get(name)
            if known and (known.whole or known.tokens or change.whole or change.tokens):
                raise AdapterError(
                    f"{adapter.path} replaces {name}, which another adapter changes, too",
                    "only what is added to a weight can be summed",
                )
            deltas = (known.deltas if known else ()) + change.deltas
            total[name] = dataclasses.replace(change, deltas=deltas)
    return total


def _read(weighted: Weighted, base: _Base, alone: bool) -> dict[str, WeightDelta]:
    """The deltas of one adapter; `alone`: no other is merged with it."""
    path, weight = weighted
    config = read_adapter_config(path)
    if config.get("use_dora") and (not alone or weight != 1):
        raise AdapterError(f"{path} is a DoRA adapter, which has no weighted sum", "merge it alone")
    _check_lineage(base.folder, path)
    adapter = _Adapter(path, weight, config, read_tensors(path, base.card, config))
    deltas = _deltas(adapter, base)
    tokens = _tokens(adapter, base)
    wholes = _wholes(base, adapter.tensors)
    changes = {}
    for name in {**deltas, **tokens, **wholes}:
        change = _weight_delta(
            adapter, base, name, wholes.get(name), deltas.get(name, ()), tokens.get(name)
        )
        if change.whole or change.deltas or change.tokens:
            changes[name] = change
        if weight != 1 and (change.whole or change.tokens):
            raise AdapterError(
                f"{path} replaces {name} as a whole, so weight {weight:g} cannot be applied",
                f"use it without :{weight:g}",
            )
    return changes


def _weight_delta(
    adapter: _Adapter,
    base: _Base,
    name: str,
    whole: LazyTensor | None,
    deltas: tuple[Delta, ...],
    tokens: TokenRows | None,
) -> WeightDelta:
    """The delta of one weight, whose parts are checked against the base's shape."""
    if base.stored(name) not in base.weights.tensors:
        raise AdapterError(
            f"{adapter.path}: adapts {name}, which {base.folder.name} does not have", OTHER_BASE
        )
    shape = base.shape(name)
    if whole:
        _check_whole(adapter.path, base, name, whole.shape)
        if whole.equals(base.reader(name), as_rows(shape)):
            whole = None  # the base's own weight, saved along
    change = WeightDelta(whole.shape if whole else shape, whole, deltas, tokens)
    for delta in deltas:
        if as_rows(delta.shape) != as_rows(change.shape):
            raise _does_not_fit(adapter.path, base, name, change.shape, delta.shape)
    if tokens:
        _check_tokens(adapter.path, name, change, tokens)
    return change


def _check_whole(adapter: Path, base: _Base, name: str, saved: tuple[int, ...]) -> None:
    """A saved weight has the base's shape; embeddings may have other numbers of rows."""
    shape = base.shape(name)
    ends = [base.card.hf_name(end) for end in ("token_embd.weight", "output.weight")]
    if saved != shape and (name not in ends or saved[1:] != shape[1:]):
        raise _does_not_fit(adapter, base, name, shape, saved)


def _check_tokens(adapter: Path, name: str, change: WeightDelta, tokens: TokenRows) -> None:
    indices, values = tokens.indices, tokens.values
    if change.deltas:
        raise AdapterError(f"{adapter}: both LoRA and trained tokens on {name}")
    if (
        values.shape[1:] != change.shape[1:]
        or not 0 <= min(indices) <= max(indices) < change.shape[0]
    ):
        raise AdapterError(
            f"{adapter}: {values.name} is {values.shape} for tokens {min(indices)} to "
            f"{max(indices)}, {name} is {change.shape}",
            OTHER_BASE,
        )


def _does_not_fit(
    adapter: Path, base: _Base, name: str, shape: tuple[int, ...], adapted: tuple[int, ...]
) -> AdapterError:
    return AdapterError(
        f"{adapter} does not fit {base.folder.name}: {name} is {shape}, the adapter's is {adapted}",
        OTHER_BASE,
    )


def _wholes(base: _Base, tensors: AdapterTensors) -> dict[str, LazyTensor]:
    """Name of a weight -> the tensor that replaces it.

    Of tied layers, one that was trained alone is replaced alone; a saved base weight is of both,
    because both share it.
    """
    wholes = {**tensors.base, **tensors.saved}
    if base.tied:
        for one, other in (base.tied, base.tied[::-1]):
            if one not in wholes and other in tensors.base:
                wholes[one] = tensors.base[other]
    return wholes


def _deltas(adapter: _Adapter, base: _Base) -> dict[str, tuple[Delta, ...]]:
    """Name of a weight -> what is added to it."""
    square = _square_is_transposed(adapter, base)
    deltas: dict[str, tuple[Delta, ...]] = {}
    for module, parts in adapter.tensors.parts.items():
        if parts.keys() == {"tokens"}:
            continue
        for name, delta in _module_deltas(adapter, base, module, parts, square):
            if name in deltas:
                raise AdapterError(f"{adapter.path}: two adapters on {name} in one file")
            deltas[name] = (delta,)
    _check_complete(adapter, base, deltas)
    return deltas


def _module_deltas(
    adapter: _Adapter, base: _Base, module: str, parts: dict[str, LazyTensor], square: bool
) -> Iterator[Named]:
    """The deltas of one module of transformers: a linear layer, an embedding or a parameter."""
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


def _pair(
    adapter: _Adapter, module: str, parts: dict[str, LazyTensor], embedding: bool
) -> tuple[LazyTensor, LazyTensor]:
    """A and B of a module; AdapterError where its tensors do not belong together."""
    path = adapter.path
    pair = ("embedding_A", "embedding_B") if embedding else ("A", "B")
    if missing := [role for role in pair if role not in parts]:
        raise AdapterError(f"{path}: {module} has no lora_{missing[0]}", "is the adapter complete?")
    if extra := parts.keys() - pair - ({"magnitude"} if embedding else {"magnitude", "bias"}):
        raise AdapterError(f"{path}: {parts[min(extra)].name} does not belong to a LoRA layer")
    a, b = (parts[role] for role in pair)
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or 0 in a.shape:
        raise AdapterError(f"{path}: {a.name} is {a.shape}, {b.name} is {b.shape}")
    if bool(adapter.config.get("use_dora")) != ("magnitude" in parts):
        has = "has a DoRA magnitude" if "magnitude" in parts else "has no DoRA magnitude"
        raise AdapterError(f"{path}: {module} {has}, which its configuration contradicts")
    return a, b


def _linear_delta(
    adapter: _Adapter,
    base: _Base,
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
    lora = LoRA(left, right, scale)
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
    adapter: _Adapter, base: _Base, parameter: str, a: LazyTensor, b: LazyTensor
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


def _square_is_transposed(adapter: _Adapter, base: _Base) -> bool:
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


def _is_transposed(base: _Base, module: str, parts: dict[str, LazyTensor], square: bool) -> bool:
    """Whether a weight is stored as (in, out); `square`: the answer for square weights."""
    name = base.stored(f"{base.card.in_checkpoint(module)}.weight")
    info = base.weights.tensors.get(name)
    delta = (parts["B"].shape[0], parts["A"].shape[-1])
    if info is None or as_rows(info.shape) != delta[::-1]:
        return False
    return square if delta[0] == delta[1] else True


def _parameters(base: _Base, config: dict[str, Any], module: str) -> list[str]:
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


def _wrapped(adapter: _Adapter, parameters: list[str], module: str) -> str:
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


def _check_complete(adapter: _Adapter, base: _Base, deltas: dict[str, tuple[Delta, ...]]) -> None:
    """AdapterError where some layers or experts of an adapted kind have no delta.

    Nothing is known where the configuration chooses layers or experts by name.
    """
    targets = adapter.config.get("target_modules") or ()
    if isinstance(targets, str) or any("expert" in target for target in targets):
        return
    experts: dict[tuple[str, int], set[int]] = {}
    layers: dict[str, set[int]] = {}
    for name in deltas:
        general, numbers = models.generalize(name)
        if "{e}" in general:
            experts.setdefault((general, numbers[0]), set()).add(numbers[1])
        elif "{i}" in general:
            layers.setdefault(general, set()).add(numbers[0])
    _check_experts(adapter.path, base, experts)
    chosen = any(adapter.config.get(key) for key in ("layers_to_transform", "exclude_modules"))
    if not chosen and not any(part.isdigit() for name in targets for part in name.split(".")):
        _check_layers(adapter.path, base, targets, layers)


def _check_experts(adapter: Path, base: _Base, experts: dict[tuple[str, int], set[int]]) -> None:
    """`experts`: (general name, layer) -> experts with a delta."""
    for (general, layer), adapted in experts.items():
        expert = 0
        while (name := models.fill(general, (layer, expert))) in base.weights.tensors:
            if expert not in adapted:
                raise _lacks(adapter, name, "other experts of the layer")
            expert += 1


def _check_layers(
    adapter: Path, base: _Base, targets: Sequence[str], layers: dict[str, set[int]]
) -> None:
    """`layers`: general name -> layers with a delta."""
    ends = tuple(f".{target}.weight" for target in targets)
    for name in base.weights.tensors:
        general, numbers = models.generalize(name)
        if name.endswith(ends) and numbers[:1] and numbers[0] not in layers.get(general, numbers):
            raise _lacks(adapter, name, "it in other layers")


def _lacks(adapter: Path, name: str, others: str) -> AdapterError:
    return AdapterError(
        f"{adapter} lacks {name}, though it adapts {others}", "is the adapter complete?"
    )


def _tokens(adapter: _Adapter, base: _Base) -> dict[str, TokenRows]:
    """Name of a weight -> its rows that were trained alone.

    Where the output layer shares the embedding's weight, peft gives it the same rows, unless the
    configuration names other rows for it (utils/other.py: `set_additional_trainable_modules`).
    """
    configured = adapter.config.get("trainable_token_indices") or {}
    tokens: dict[str, TokenRows] = {}
    for module, parts in adapter.tensors.parts.items():
        if "tokens" not in parts:
            continue
        values = parts["tokens"]
        indices = configured
        name = f"{base.card.in_checkpoint(module)}.weight"
        if isinstance(configured, dict):
            indices = next((v for key, v in configured.items() if module.endswith(key)), [])
            if not indices and base.tied and name == base.tied[1]:
                continue  # the embedding's, saved twice
        if len(values.shape) != 2 or len(indices) != values.shape[0]:
            raise AdapterError(
                f"{adapter.path}: {values.name} is {values.shape} for {len(indices)} tokens"
            )
        if indices:
            tokens[name] = TokenRows(tuple(indices), values)
    if base.tied and base.tied[0] in tokens:
        tokens.setdefault(base.tied[1], tokens[base.tied[0]])
    return tokens


def _check_lineage(base: Path, adapter: Path) -> None:
    """AdapterError where the adapter's manifest names another base."""
    manifest = store.read_manifest(adapter)
    if manifest is None or "base" not in manifest.parents:
        return
    if manifest.parents["base"] != store.identity(base):
        named = str(manifest.options.get("base", "unknown"))
        changed = Path(named).exists() and Path(named).resolve() == base.resolve()
        raise AdapterError(
            f"{adapter} was trained on another base than {base}",
            "that folder was changed since" if changed else f"trained on {named}",
        )
