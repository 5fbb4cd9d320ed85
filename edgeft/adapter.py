"""An adapter in peft's format -> what it changes in each weight of its base, tensor by tensor.

    changes = read_adapter(adapter, base, Checkpoint(base), card)
    changes["model.layers.0.mlp.up_proj.weight"].delta(rows, before)    # s·B·A of these rows

Nothing is merged here and no torch is needed. Everything in the adapter must find its place: a
tensor that is left over is an error, not a warning.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgeft import models, stage
from edgeft.checkpoint import Array, Checkpoint, Rows, as_rows
from edgeft.errors import AdapterError, InputError
from edgeft.template import read_json


class Change(Protocol):
    """What happens to one weight; rows as in `edgeft.checkpoint.Rows`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """of the weight afterwards"""
        ...

    def delta(self, rows: Rows, before: Array) -> Array:
        """What is added to `before`, these rows of the base's weight."""
        ...


@dataclass(frozen=True)
class LoRA:
    """s·B·A (arXiv 2106.09685)."""

    a: Array
    """(r, in)"""
    b: Array
    """(out, r)"""
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.b.shape[0], self.a.shape[1])

    def delta(self, rows: Rows, before: Array) -> Array:
        scaled: Array = self.b[rows] * np.float32(self.scale)
        product: Array = np.matmul(scaled, self.a)
        return product


@dataclass(frozen=True)
class Whole:
    """A tensor that was trained and saved whole (`modules_to_save`)."""

    weights: Checkpoint
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weights.tensors[self.name].shape

    def delta(self, rows: Rows, before: Array) -> Array:
        return self.rows(rows) - before

    def rows(self, rows: Rows) -> Array:
        return self.weights.rows(self.name, rows)


def read_adapter_config(adapter: Path) -> dict[str, Any]:
    """adapter_config.json of an adapter in peft's format.

    InputError when there is no such folder (after an interrupted training the hint says so),
    AdapterError when it is something else.
    """
    if not adapter.is_dir():
        stopped = adapter.with_name(adapter.name + ".work").is_dir()
        raise InputError(
            f"no such adapter: {adapter}",
            "its training was interrupted: edgeft train-qlora … --resume"
            if stopped
            else "edgeft train-qlora makes one",
        )
    config = read_json(adapter / "adapter_config.json")
    if not config or not (adapter / "adapter_model.safetensors").is_file():
        lacks = "adapter_model.safetensors" if config else "adapter_config.json"
        raise AdapterError(
            f"{adapter} is not an adapter: no {lacks}", "a folder in peft's format is needed"
        )
    return config


def read_adapter(
    adapter: Path, base: Path, weights: Checkpoint, card: models.Card
) -> dict[str, Change]:
    """Tensor name in the base -> its change.

    AdapterError: not an adapter, of another base, or a kind that edgeft cannot merge.
    """
    config = _mergeable(adapter)
    _check_lineage(base, adapter)
    own = Checkpoint(adapter / "adapter_model.safetensors")
    pairs: dict[str, dict[str, Array]] = {}
    changes: dict[str, Change] = {}
    for name in own.tensors:
        match = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight", name)
        if match:
            pairs.setdefault(match[1], {})[match[2]] = own.read(name)
            continue
        whole = re.fullmatch(r"base_model\.model\.(.+?)(?:\.modules_to_save)?\.(weight|bias)", name)
        changes[_in_checkpoint(card, f"{whole[1]}.{whole[2]}" if whole else name)] = Whole(
            own, name
        )
    if not pairs and not changes:
        raise AdapterError(f"{adapter} holds no LoRA tensors")
    for module, pair in pairs.items():
        if set(pair) != {"A", "B"}:
            raise AdapterError(f"{adapter}: {module} has only lora_{''.join(pair)}")
        if not config.get("target_parameters") or not _parameters(card, config, module):
            scale = _scale(config, module, len(pair["A"]))
            changes[f"{_in_checkpoint(card, module)}.weight"] = LoRA(pair["A"], pair["B"], scale)
        else:
            changes |= _experts(card, config, module, pair["A"], pair["B"], weights)
    for target, change in changes.items():
        if target not in weights.tensors:
            raise AdapterError(
                f"{adapter}: adapts {target}, which {base.name} does not have",
                "it was trained on another base model",
            )
        wanted = weights.tensors[target].shape
        if as_rows(change.shape) != as_rows(wanted):
            raise AdapterError(
                f"{adapter} does not fit {base.name}: {target} is {wanted}, "
                f"the adapter's is {change.shape}",
                "it was trained on another base model",
            )
    return changes


def _in_checkpoint(card: models.Card, module: str) -> str:
    """A module's name in transformers -> in the checkpoint."""
    for now, stored in card.modules.items():
        module = module.replace(now, stored)
    return module


def _parameters(card: models.Card, config: dict[str, Any], module: str) -> list[str]:
    """The 3-D parameters of a module that are adapted, in the order in which peft wraps them."""
    general, _ = models.generalize(module.replace(".base_layer", ""))
    targets = config["target_parameters"]
    return [
        name
        for name in card.fused
        if name.rpartition(".")[0] == general and any(name.endswith(t) for t in targets)
    ]


def _experts(
    card: models.Card, config: dict[str, Any], module: str, a: Array, b: Array, weights: Checkpoint
) -> dict[str, Change]:
    """LoRA on a parameter that stacks experts -> on each expert's own tensors.

    peft 0.21, tuners/lora/layer.py: `ParamWrapper`. Where several parameters of a module are
    adapted the wrappers are nested, the first parameter innermost.
    """
    wrapped = _parameters(card, config, module)
    parameter = wrapped[len(wrapped) - 1 - module.count(".base_layer")]
    _, numbers = models.generalize(module)
    parts = [models.fill(part, numbers) for part in card.fused[parameter]]
    count = 0
    while parts[0].replace("{e}", str(count)) in weights.tensors:
        count += 1
    if count == 0 or len(a) % count or b.shape[0] % len(parts):
        raise AdapterError(f"the adapter of {parameter} is not for {count} experts")
    rank, rows = len(a) // count, b.shape[0] // len(parts)
    scale = _scale(config, models.fill(parameter, numbers), rank)
    factors_a = a.reshape(count, rank, -1)
    factors_b = b.reshape(b.shape[0], rank, count)
    return {
        part.replace("{e}", str(expert)): LoRA(
            factors_a[expert], factors_b[i * rows : (i + 1) * rows, :, expert], scale
        )
        for i, part in enumerate(parts)
        for expert in range(count)
    }


def _mergeable(adapter: Path) -> dict[str, Any]:
    config = read_adapter_config(adapter)
    if config.get("peft_type") != "LORA":
        raise AdapterError(
            f"{adapter} is a {config.get('peft_type')} adapter", "edgeft merges LoRA adapters"
        )
    odd = [key for key in ("use_dora", "fan_in_fan_out") if config.get(key)]
    start = config.get("init_lora_weights", True)
    if str(start).lower().startswith(("pissa", "olora", "corda", "loftq", "eva")):
        odd.append(f"init_lora_weights={start} (it belongs to a changed base)")
    if odd or config.get("bias", "none") != "none":
        raise AdapterError(
            f"{adapter} uses {', '.join(odd) or 'LoRA biases'}, which edgeft does not merge yet",
            "merge it with peft and give the result as --base",
        )
    return config


def _check_lineage(base: Path, adapter: Path) -> None:
    manifest = stage.read_manifest(adapter)
    if manifest is None or "base" not in manifest.parents:
        return
    if manifest.parents["base"] != stage.identity(base):
        raise AdapterError(
            f"{adapter} was trained on another base than {base}",
            f"trained on {manifest.options.get('base', 'unknown')}",
        )


def _scale(config: dict[str, Any], module: str, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732), alpha by pattern as in peft."""
    alpha = config.get("lora_alpha", rank)
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            alpha = value
            break
    return float(alpha / (rank**0.5 if config.get("use_rslora") else rank))
