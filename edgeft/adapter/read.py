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

import numpy as np

from edgeft import models, store
from edgeft.adapter.deltas import Delta, LazyTensor, TokenRows, WeightDelta
from edgeft.adapter.folder import open_adapter
from edgeft.adapter.layers import (
    OTHER_BASE,
    Adapter,
    AdapterTensors,
    Base,
    absent,
    module_deltas,
    square_is_transposed,
)
from edgeft.adapter.names import PREFIX, role_of
from edgeft.errors import AdapterError
from edgeft.models.text_model import SCORE
from edgeft.weights.checkpoint import Checkpoint, as_rows


class Weighted(NamedTuple):
    """One of the adapters that are merged together: Σ weight·s·B·A."""

    path: Path
    weight: float = 1.0


def read_adapters(
    adapters: Sequence[Weighted],
    base: Path,
    weights: Checkpoint,
    card: models.Card,
    config: dict[str, Any],
) -> dict[str, WeightDelta]:
    """Name of a tensor in the base -> its delta.

    Where embedding and output layer share a weight, each has an entry of its own. A reward model has one
    for its head, `SCORE`.
    AdapterError: not an adapter, of another base, or a kind that edgeft cannot merge.
    """
    ends = (card.hf_name("token_embd.weight"), card.hf_name("output.weight"))
    tied = ends if card.value(config, "tie_word_embeddings") and None not in ends else None
    model = Base(base, weights, card, tied)  # type: ignore[arg-type]
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


def _read(weighted: Weighted, base: Base, alone: bool) -> dict[str, WeightDelta]:
    """The deltas of one adapter; `alone`: no other is merged with it."""
    path, weight = weighted
    config, folder = open_adapter(path, base.folder, reward=True)
    method = "DoRA" if config.get("use_dora") else config["peft_type"]
    if method in ("DoRA", "IA3") and (not alone or weight != 1):
        raise AdapterError(
            f"{path} is a {method} adapter, which has no weighted sum", "merge it alone"
        )
    _check_lineage(base.folder, path)
    adapter = Adapter(path, weight, config, _read_tensors(path, folder, base.card, config))
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


def _read_tensors(
    adapter: Path, folder: Path, card: models.Card, config: dict[str, Any]
) -> AdapterTensors:
    """Of `folder`, which peft can load. `adapter`: its path for messages.

    AdapterError where a tensor is not finite, or where there is none.
    """
    file = Checkpoint(folder / "adapter_model.safetensors")
    tensors = AdapterTensors()
    for full in file.tensors:
        tensor = LazyTensor.open(file, full)
        if not tensor.is_finite():
            raise AdapterError(
                f"{adapter}: {full} holds NaN or infinite values",
                "its training diverged, or the file is damaged",
            )
        name = full.removeprefix(PREFIX)
        role, match = role_of(name)
        if match is None:
            alone = _trained_alone(name, file, config)
            for weight, part in _by_weight(card, name, tensor):
                _add(adapter, tensors.saved if alone else tensors.base, weight, part)
        elif role in ("saved", "base"):
            weight = f"{card.in_checkpoint(match['module'])}.{match['leaf']}"
            _add(adapter, tensors.saved if role == "saved" else tensors.base, weight, tensor)
        elif role:
            tensors.parts.setdefault(match["module"], {})[role] = tensor
    if not tensors.parts and not tensors.saved and not tensors.base:
        raise AdapterError(
            f"{adapter} holds no {config['peft_type']} tensors".replace("LORA", "LoRA")
        )
    return tensors


def _trained_alone(name: str, file: Checkpoint, config: dict[str, Any]) -> bool:
    """Whether a weight under the base's name is a module of `modules_to_save`."""
    module = name.rpartition(".")[0]
    return f"{PREFIX}{module}.modules_to_save.weight" in file.tensors or any(
        module.endswith(key) for key in config.get("modules_to_save") or ()
    )


def _add(adapter: Path, place: dict[str, LazyTensor], weight: str, tensor: LazyTensor) -> None:
    """Resized embeddings are saved under two names (`…weight`, `….modules_to_save.weight`)."""
    known = place.get(weight)
    if known and not known.equals(tensor.__getitem__, tensor.shape):
        raise AdapterError(f"{adapter}: {known.name} and {tensor.name} differ")
    place[weight] = tensor


def _by_weight(
    card: models.Card, name: str, tensor: LazyTensor
) -> Iterator[tuple[str, LazyTensor]]:
    """(name in the checkpoint, tensor) of a saved weight; of a 3-D parameter for each expert."""
    general, numbers = models.generalize(name)
    parts = card.fused.get(general)
    if not parts or len(tensor.shape) != 3:
        yield card.in_checkpoint(name), tensor
        return
    rows = tensor.shape[1] // len(parts)
    for expert in range(tensor.shape[0]):
        for i, part in enumerate(parts):
            span = np.s_[expert, i * rows : (i + 1) * rows]
            yield (
                models.fill(part, numbers).replace("{e}", str(expert)),
                tensor.view(lambda raw, span=span: raw[span]),  # type: ignore[misc]
            )


def _weight_delta(
    adapter: Adapter,
    base: Base,
    name: str,
    whole: LazyTensor | None,
    deltas: tuple[Delta, ...],
    tokens: TokenRows | None,
) -> WeightDelta:
    """The delta of one weight, whose parts are checked against the base's shape."""
    if name == SCORE and whole:  # the head of a reward model, which no base has
        return WeightDelta(whole.shape, whole)
    if base.stored(name) not in base.weights.tensors:
        raise absent(adapter.path, base, name)
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


def _check_whole(adapter: Path, base: Base, name: str, saved: tuple[int, ...]) -> None:
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
    adapter: Path, base: Base, name: str, shape: tuple[int, ...], adapted: tuple[int, ...]
) -> AdapterError:
    return AdapterError(
        f"{adapter} does not fit {base.folder.name}: {name} is {shape}, the adapter's is {adapted}",
        OTHER_BASE,
    )


def _wholes(base: Base, tensors: AdapterTensors) -> dict[str, LazyTensor]:
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


def _deltas(adapter: Adapter, base: Base) -> dict[str, tuple[Delta, ...]]:
    """Name of a weight -> what is added to it."""
    square = square_is_transposed(adapter, base)
    deltas: dict[str, tuple[Delta, ...]] = {}
    for module, parts in adapter.tensors.parts.items():
        if parts.keys() == {"tokens"}:
            continue
        for name, delta in module_deltas(adapter, base, module, parts, square):
            if name in deltas:
                raise AdapterError(f"{adapter.path}: two adapters on {name} in one file")
            deltas[name] = (delta,)
    _check_complete(adapter, base, deltas)
    return deltas


def _check_complete(adapter: Adapter, base: Base, deltas: dict[str, tuple[Delta, ...]]) -> None:
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


def _check_experts(adapter: Path, base: Base, experts: dict[tuple[str, int], set[int]]) -> None:
    """`experts`: (general name, layer) -> experts with a delta."""
    for (general, layer), adapted in experts.items():
        expert = 0
        while (name := models.fill(general, (layer, expert))) in base.weights.tensors:
            if expert not in adapted:
                raise _lacks(adapter, name, "other experts of the layer")
            expert += 1


def _check_layers(
    adapter: Path, base: Base, targets: Sequence[str], layers: dict[str, set[int]]
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


def _tokens(adapter: Adapter, base: Base) -> dict[str, TokenRows]:
    """Name of a weight -> its rows that were trained alone.

    Where the output layer shares the embedding's weight, peft gives it the same rows, unless the
    configuration names other rows for it (utils/other.py: `set_additional_trainable_modules`).
    """
    keys = ("trainable_token_indices", "token_indices")
    configured: Any = next((adapter.config[key] for key in keys if adapter.config.get(key)), {})
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
