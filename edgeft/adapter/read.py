"""Adapters in peft's format -> what they change in each weight of their base, tensor by tensor.

    changes = read_adapters([Weighted(adapter)], base, Checkpoint(base), card, config)
    changes["model.layers.0.mlp.up_proj.weight"].delta(rows, before, read)    # s·B·A of these rows

Nothing is merged here and no torch is needed. What is computed is what peft's live adapter computes
(peft 0.21.2). Everything in an adapter must find its place: a tensor that is left over is an error,
not a warning.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edgeft import models, store
from edgeft.adapter.config import read_adapter_config, scaling
from edgeft.adapter.deltas import Change, Delta, DoRA, LoRA, Read, Shift, Stored, Tokens
from edgeft.adapter.tensors import Found, read_tensors
from edgeft.errors import AdapterError
from edgeft.weights.checkpoint import Checkpoint, as_rows


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
        """The tensor of the checkpoint that a weight comes from."""
        return self.tied[0] if self.tied and name == self.tied[1] else name

    def shape(self, name: str) -> tuple[int, ...]:
        return self.weights.tensors[self.stored(name)].shape

    def reader(self, name: str) -> Read:
        return lambda rows: self.weights.rows(self.stored(name), rows)


def read_adapters(
    adapters: Sequence[Weighted],
    base: Path,
    weights: Checkpoint,
    card: models.Card,
    config: dict[str, Any],
) -> dict[str, Change]:
    """Tensor name in the base -> its change.

    Where embedding and output layer share a weight, each has its own entry.
    AdapterError: not an adapter, of another base, or a kind that edgeft cannot merge.
    """
    pair = (card.hf_name("token_embd.weight"), card.hf_name("output.weight"))
    tied = pair if card.value(config, "tie_word_embeddings") and None not in pair else None
    model = _Base(base, weights, card, tied)  # type: ignore[arg-type]
    changes: dict[str, Change] = {}
    for adapter in adapters:
        for name, change in _read(adapter, model, alone=len(adapters) == 1).items():
            known = changes.get(name)
            if known and (known.whole or known.tokens or change.whole or change.tokens):
                raise AdapterError(
                    f"{adapter.path} replaces {name}, which another adapter changes, too",
                    "only what is added to a weight can be summed",
                )
            deltas = (known.deltas if known else ()) + change.deltas
            changes[name] = dataclasses.replace(change, deltas=deltas)
    return changes


def _read(adapter: Weighted, base: _Base, alone: bool) -> dict[str, Change]:
    config = read_adapter_config(adapter.path)
    if config.get("use_dora") and (not alone or adapter.weight != 1):
        raise AdapterError(
            f"{adapter.path} is a DoRA adapter, which has no weighted sum", "merge it alone"
        )
    _check_lineage(base.folder, adapter.path)
    found = read_tensors(adapter.path, base.card, config)
    deltas = _deltas(adapter, base, config, found)
    tokens = _tokens(adapter.path, base, config, found)
    wholes = _wholes(base, found)
    changes = {}
    for name in {**deltas, **tokens, **wholes}:
        if base.stored(name) not in base.weights.tensors:
            raise AdapterError(
                f"{adapter.path}: adapts {name}, which {base.folder.name} does not have",
                "it was trained on another base model",
            )
        whole = wholes.get(name)
        wanted = base.shape(name)
        _check_shape(adapter.path, base, name, whole.shape if whole else None, wanted)
        if whole and whole.equals(base.reader(name), as_rows(wanted)):
            whole = None
        change = Change(
            whole.shape if whole else wanted, whole, deltas.get(name, ()), tokens.get(name)
        )
        for delta in change.deltas:
            if as_rows(delta.shape) != as_rows(change.shape):
                _does_not_fit(adapter.path, base, name, change.shape, delta.shape)
        if change.tokens:
            _check_tokens(adapter.path, name, change)
        if change.whole or change.deltas or change.tokens:
            changes[name] = change
        if adapter.weight != 1 and (change.whole or change.tokens):
            raise AdapterError(
                f"{adapter.path} replaces {name}, which has no part of {adapter.weight:g}",
                "give it without a weight",
            )
    return changes


def _check_tokens(adapter: Path, name: str, change: Change) -> None:
    assert change.tokens is not None
    indices, values = change.tokens.indices, change.tokens.values
    if change.deltas:
        raise AdapterError(f"{adapter}: both LoRA and trained tokens on {name}")
    if (
        values.shape[1:] != change.shape[1:]
        or not 0 <= min(indices) <= max(indices) < change.shape[0]
    ):
        raise AdapterError(
            f"{adapter}: {values.name} is {values.shape} for tokens {min(indices)} to "
            f"{max(indices)}, {name} is {change.shape}",
            "it was trained on another base model",
        )


def _check_shape(
    adapter: Path, base: _Base, name: str, own: tuple[int, ...] | None, wanted: tuple[int, ...]
) -> None:
    """A saved weight is as large as the base's, embeddings apart, whose rows may be others."""
    if own is None or own == wanted:
        return
    ends = [base.card.hf_name(end) for end in ("token_embd.weight", "output.weight")]
    if name not in ends or own[1:] != wanted[1:]:
        _does_not_fit(adapter, base, name, wanted, own)


def _does_not_fit(
    adapter: Path, base: _Base, name: str, wanted: tuple[int, ...], own: tuple[int, ...]
) -> None:
    raise AdapterError(
        f"{adapter} does not fit {base.folder.name}: {name} is {wanted}, the adapter's is {own}",
        "it was trained on another base model",
    )


def _wholes(base: _Base, found: Found) -> dict[str, Stored]:
    """Weight -> what stands in for the base's.

    Of tied layers, what was trained for one of them alone is that one's; a saved base weight is
    both's, as both share it.
    """
    wholes = {**found.under, **found.saved}
    if base.tied:
        for one, other in (base.tied, base.tied[::-1]):
            if one not in wholes and other in found.under:
                wholes[one] = found.under[other]
    return wholes


def _deltas(
    adapter: Weighted, base: _Base, config: dict[str, Any], found: Found
) -> dict[str, tuple[Delta, ...]]:
    path, card = adapter.path, base.card
    flag = bool(config.get("fan_in_fan_out"))
    square_flag = flag or any(
        _is_transposed(base, module, parts, flag)
        for module, parts in found.parts.items()
        if set("AB") <= parts.keys() and parts["A"].shape[-1:] != parts["B"].shape[:1]
    )
    deltas: dict[str, tuple[Delta, ...]] = {}

    def add(name: str, delta: Delta) -> None:
        if name in deltas:
            raise AdapterError(f"{path}: two adapters on {name} in one file")
        deltas[name] = (delta,)

    for module, parts in found.parts.items():
        if parts.keys() == {"tokens"}:
            continue
        embedding = "embedding_A" in parts or "embedding_B" in parts
        kinds = ("embedding_A", "embedding_B") if embedding else ("A", "B")
        if missing := [kind for kind in kinds if kind not in parts]:
            raise AdapterError(
                f"{path}: {module} has no lora_{missing[0]}", "is the adapter complete?"
            )
        if extra := parts.keys() - kinds - ({"magnitude"} if embedding else {"magnitude", "bias"}):
            raise AdapterError(f"{path}: {parts[min(extra)].name} does not belong to a LoRA layer")
        a, b = (parts[kind] for kind in kinds)
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or 0 in a.shape:
            raise AdapterError(f"{path}: {a.name} is {a.shape}, {b.name} is {b.shape}")
        dora = parts.get("magnitude")
        if bool(config.get("use_dora")) != (dora is not None):
            told = "has a DoRA magnitude" if dora else "has no DoRA magnitude"
            raise AdapterError(f"{path}: {module} {told}, which its configuration contradicts")
        parameters = _parameters(base, config, module)
        if parameters and not embedding:
            parameter = _wrapped(path, parameters, module, found)
            for name, lora in _on_parameter(adapter, base, config, parameter, a, b).items():
                add(name, lora)
            continue
        rank = a.shape[0]
        # Of experts that were modules in transformers 4, too: peft 0.21 fuses such adapters on
        # loading, which makes the scale of rsLoRA sqrt(2) times the one of training.
        scale = adapter.weight * scaling(path, config, module, rank)
        name = f"{card.in_checkpoint(module)}.weight"
        transposed = embedding or _is_transposed(base, module, parts, square_flag)
        if transposed:
            a, b = b.transposed(), a.transposed()
        lora = LoRA(b, a, scale)
        if dora:
            if dora.shape != (lora.shape[1] if transposed else lora.shape[0],):
                raise AdapterError(f"{path}: {dora.name} is {dora.shape}, the weight {lora.shape}")
            add(name, DoRA(lora, dora, by_column=transposed))
        else:
            add(name, lora)
        if "bias" in parts:
            add(f"{card.in_checkpoint(module)}.bias", Shift(parts["bias"], scale))
    _check_complete(path, base, config, deltas)
    return deltas


def _is_transposed(base: _Base, module: str, parts: dict[str, Stored], square: bool) -> bool:
    """Whether the weight is stored as (in, out), as Conv1D has it.

    peft keeps one flag (`fan_in_fan_out`) for the whole adapter, the last module's; the shapes say
    more, except of a square weight.
    """
    name = base.stored(f"{base.card.in_checkpoint(module)}.weight")
    info = base.weights.tensors.get(name)
    delta = (parts["B"].shape[0], parts["A"].shape[-1])
    if info is None or as_rows(info.shape) != delta[::-1]:
        return False
    return square if delta[0] == delta[1] else True


def _parameters(base: _Base, config: dict[str, Any], module: str) -> list[str]:
    """The parameters of a module that are adapted (`target_parameters`), as peft wraps them."""
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


def _wrapped(adapter: Path, parameters: list[str], module: str, found: Found) -> str:
    """Of several parameters of a module each has its own wrapper, the first the innermost.

    peft 0.21, tuners/tuners_utils.py: `_inject_parameters`.
    """
    outermost = module.replace(".base_layer", "")
    for depth, parameter in enumerate(reversed(parameters)):
        if outermost + ".base_layer" * depth not in found.parts:
            raise AdapterError(
                f"{adapter} lacks {parameter}, which its configuration adapts",
                "is the adapter complete?",
            )
    outside = len(parameters) - 1 - module.count(".base_layer")
    if outside < 0 or found.parts[module].keys() != {"A", "B"}:
        raise AdapterError(f"{adapter}: {module} is no LoRA of {', '.join(parameters)}")
    return parameters[outside]


def _on_parameter(
    adapter: Weighted, base: _Base, config: dict[str, Any], parameter: str, a: Stored, b: Stored
) -> dict[str, Delta]:
    """LoRA on a parameter -> on each expert's own tensors where it stacks experts.

    peft 0.21, tuners/lora/layer.py: `ParamWrapper.get_delta_weight`.
    """
    general, numbers = models.generalize(parameter)
    if general not in base.card.fused:
        scale = adapter.weight * scaling(adapter.path, config, parameter, a.shape[0])
        return {base.card.in_checkpoint(parameter): LoRA(b, a, scale)}
    parts = [models.fill(part, numbers) for part in base.card.fused[general]]
    count = 0
    while "{e}" in parts[0] and parts[0].replace("{e}", str(count)) in base.weights.tensors:
        count += 1
    if count == 0 or a.shape[0] % count or b.shape[0] % len(parts):
        raise AdapterError(
            f"{adapter.path}: the adapter of {parameter} is not for {count} experts",
            "it was trained on another base model",
        )
    rank, rows = a.shape[0] // count, b.shape[0] // len(parts)
    scale = adapter.weight * scaling(adapter.path, config, parameter, rank)
    found: dict[str, Delta] = {}
    for expert in range(count):
        right = a.part(lambda raw, e=expert: raw.reshape(count, rank, -1)[e])  # type: ignore[misc]
        left = b.part(lambda raw, e=expert: raw.reshape(-1, rank, count)[:, :, e])  # type: ignore[misc]
        for i, part in enumerate(parts):
            where = slice(i * rows, (i + 1) * rows)
            own = left.part(lambda raw, where=where: raw[where])  # type: ignore[misc]
            found[part.replace("{e}", str(expert))] = LoRA(own, right, scale)
    return found


def _check_complete(
    adapter: Path, base: _Base, config: dict[str, Any], deltas: dict[str, tuple[Delta, ...]]
) -> None:
    """Where one layer or one expert is adapted all are, unless some were chosen by name."""
    targets = config.get("target_modules") or ()
    if isinstance(targets, str) or any("expert" in target for target in targets):
        return
    groups: dict[tuple[str, int], set[int]] = {}
    layers: dict[str, set[int]] = {}
    for name in deltas:
        general, numbers = models.generalize(name)
        if "{e}" in general:
            groups.setdefault((general, numbers[0]), set()).add(numbers[1])
        elif "{i}" in general:
            layers.setdefault(general, set()).add(numbers[0])
    for (general, layer), experts in groups.items():
        expert = 0
        while (name := models.fill(general, (layer, expert))) in base.weights.tensors:
            if expert not in experts:
                _lacks(adapter, name, "other experts of the layer")
            expert += 1
    chosen = any(config.get(key) for key in ("layers_to_transform", "exclude_modules"))
    if chosen or any(part.isdigit() for target in targets for part in target.split(".")):
        return
    ends = tuple(f".{target}.weight" for target in targets)
    for name in base.weights.tensors:
        general, numbers = models.generalize(name)
        if name.endswith(ends) and numbers[:1] and numbers[0] not in layers.get(general, numbers):
            _lacks(adapter, name, "it in other layers")


def _lacks(adapter: Path, name: str, others: str) -> None:
    raise AdapterError(
        f"{adapter} lacks {name}, though it adapts {others}", "is the adapter complete?"
    )


def _tokens(adapter: Path, base: _Base, config: dict[str, Any], found: Found) -> dict[str, Tokens]:
    """Weight -> its rows that were trained alone.

    peft wraps the output layer with the same rows where it shares the embedding's weight, unless
    other rows were asked for there (utils/other.py: `set_additional_trainable_modules`).
    """
    asked = config.get("trainable_token_indices") or {}
    tokens: dict[str, Tokens] = {}
    for module, parts in found.parts.items():
        if "tokens" not in parts:
            continue
        values = parts["tokens"]
        indices = asked
        name = f"{base.card.in_checkpoint(module)}.weight"
        if isinstance(asked, dict):
            indices = next((v for key, v in asked.items() if module.endswith(key)), [])
            if not indices and base.tied and name == base.tied[1]:
                continue  # the embedding's, saved twice
        if len(values.shape) != 2 or len(indices) != values.shape[0]:
            raise AdapterError(
                f"{adapter}: {values.name} is {values.shape} for {len(indices)} tokens"
            )
        if indices:
            tokens[name] = Tokens(tuple(indices), values)
    if base.tied and base.tied[0] in tokens:
        tokens.setdefault(base.tied[1], tokens[base.tied[0]])
    return tokens


def _check_lineage(base: Path, adapter: Path) -> None:
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
