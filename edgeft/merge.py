"""Base + adapter -> the Merged view: one tensor at a time, summed in float32, with a landing proof.

    merged = open_merged(base, adapter, merge_base="nf4")
    for name in merged.shapes:
        weight = merged.tensor(name)              # W + s·B·A, float32
        merged.landed(name, given, kept)          # sampled rows: given, and kept by the type
    print(merged.proof())                         # raises ProofError when the adapter did not land

Nothing is written and no torch is needed: a converter consumes the view, so base and adapter become
a 4-bit file without a merged copy, and without the bfloat16 sum in which small deltas vanish.

`merge_base` says what the delta is added to: "w16", the stored weights, or "nf4", the values that a
QLoRA adapter saw while it was trained (`edgeft.nf4`).

The landing coefficient of a tensor is beta = <W' - W, sBA> / |sBA|^2: 1 = landed, 0 = not there,
2 = merged twice; a wrong scale shows as a factor. It is taken twice: of the sum that went into the
converter, where it has to be 1 in every tensor, and of what the output type kept of it. A coarse
type keeps less or answers with a gain, above all where W lies on a grid itself (NF4 values); that
is told, and refused where it cannot be told from a lost or a doubled merge.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgeft import models, nf4, stage
from edgeft.checkpoint import Checkpoint
from edgeft.errors import AdapterError, InputError, ProofError
from edgeft.template import read_json

Array = npt.NDArray[np.float32]
MergeBase = Literal["w16", "nf4"]

SAMPLE = 1 << 20
"""elements of a tensor that beta is computed on (evenly spaced rows)"""

EXACT = 1e-3
"""how far beta of the float32 sum may be from 1"""
FAITHFUL = 0.25
"""how far beta of what the type kept may be from 1 before the user is told"""
LOST, TWICE = 0.25, 1.75
"""bounds of beta of what the type kept"""


@dataclass(frozen=True)
class Proof:
    """How the adapter arrived in the artifact."""

    tensors: int
    """adapted tensors, all of them measured"""
    beta: float
    """landing coefficient of what the output type kept, over all tensors"""
    beta_min: float
    beta_max: float
    delta: float
    """rms of the delta over rms of the weights it was added to"""
    noise: float
    """rms of the quantization error over rms of the delta"""
    merge_base: str

    def __str__(self) -> str:
        if not self.tensors:
            return "no adapter: the base model as it is"
        return (
            f"landed: {self.tensors} of {self.tensors} tensors, beta {self.beta:.3f} "
            f"({self.beta_min:.3f} to {self.beta_max:.3f}), delta {self.delta:.2%} of the weights, "
            f"rounding {self.noise:.2f} of the delta, merged into {self.merge_base}"
        )

    @property
    def faithful(self) -> bool:
        """The type keeps the adapter's size; otherwise a finer one is worth a try."""
        return abs(self.beta - 1) <= FAITHFUL


@dataclass(frozen=True)
class _Delta:
    a: Array
    """(r, in)"""
    b: Array
    """(out, r)"""
    scale: float

    def rows(self, rows: npt.NDArray[np.intp] | slice = slice(None)) -> Array:
        scaled: Array = self.b[rows] * np.float32(self.scale)
        product: Array = np.matmul(scaled, self.a)
        return product


class Merged:
    """See the module's docstring; made by `open_merged`."""

    def __init__(
        self,
        base: Path,
        deltas: dict[str, _Delta],
        replaced: dict[str, Array],
        merge_base: MergeBase,
        frozen_in_nf4: frozenset[str],
    ) -> None:
        self.base = base
        self.config = read_json(base / "config.json")
        self.card = models.card_for(self.config)
        self.merge_base = merge_base
        self._weights = Checkpoint(base)
        self._deltas = deltas
        self._replaced = replaced
        self._nf4 = frozen_in_nf4 if merge_base == "nf4" else frozenset()
        self._last: tuple[str, Array] = ("", np.empty(0, np.float32))
        self._sums: dict[str, npt.NDArray[np.float64]] = {}
        self.shapes = {name: info.shape for name, info in self._weights.tensors.items()}

    def tensor(self, name: str) -> Array:
        """One merged weight, float32."""
        if name in self._replaced:
            return self._replaced[name]
        weight = self._base_tensor(name)
        delta = self._deltas.get(name)
        return weight if delta is None else weight + delta.rows()

    def adapted(self, name: str) -> bool:
        return name in self._deltas

    def sample(self, name: str) -> npt.NDArray[np.intp]:
        """The rows that `landed` wants to see of an adapted tensor."""
        rows, columns = self.shapes[name]
        count = max(1, min(rows, SAMPLE // columns))
        return np.unique(np.linspace(0, rows - 1, count).astype(np.intp))

    def landed(self, name: str, summed: Array, kept: Array) -> None:
        """Report the sampled rows of an adapted tensor: as they were given, as they are kept."""
        rows = self.sample(name)
        delta = self._deltas[name].rows(rows)
        before = self._base_tensor(name)[rows]
        pairs = (
            (delta, delta),
            (before, before),
            (summed - before, delta),
            (kept - before, delta),
            (kept - summed, kept - summed),
        )
        self._sums[name] = np.array([np.vdot(x, y) for x, y in pairs], np.float64)

    def proof(self) -> Proof:
        """The proof over everything reported so far; ProofError when the adapter is not there."""
        missing = [name for name in self._deltas if name not in self._sums]
        if missing:
            raise ProofError(f"{len(missing)} adapted tensors were not written: {missing[0]}, …")
        if not self._sums:
            return Proof(0, 1.0, 1.0, 1.0, 0.0, 0.0, self.merge_base)
        whole = np.sum(list(self._sums.values()), axis=0)
        size, weight, _, kept, noise = whole
        if size == 0:
            raise ProofError(
                "the adapter is zero everywhere: the result would be the base model",
                "train it, or export the base without --adapter",
            )
        # A tensor whose delta is zero has nothing to land.
        moving = {name: sums for name, sums in self._sums.items() if sums[0]}
        for name, sums in moving.items():
            if abs(sums[2] / sums[0] - 1) > EXACT:
                raise ProofError(
                    f"the adapter did not land in {name}: beta {sums[2] / sums[0]:.3f} "
                    "(1 = landed, 0 = lost, 2 = twice)",
                    "this is a defect of the merge, not of your input",
                )
        betas = [float(sums[3] / sums[0]) for sums in moving.values()]
        proof = Proof(
            tensors=len(self._sums),
            beta=float(kept / size),
            beta_min=min(betas),
            beta_max=max(betas),
            delta=float(np.sqrt(size / weight)),
            noise=float(np.sqrt(noise / size)),
            merge_base=self.merge_base,
        )
        if not LOST < proof.beta < TWICE:
            raise ProofError(
                f"the adapter did not land: of its {proof.delta:.2%} change this type keeps "
                f"beta {proof.beta:.3f} (1 = landed, 0 = lost, 2 = twice)",
                "a finer --quant",
            )
        return proof

    def _base_tensor(self, name: str) -> Array:
        if self._last[0] != name:  # the proof asks for a tensor right after the converter did
            weight = self._weights.read(name)
            self._last = name, nf4.round_trip(weight) if name in self._nf4 else weight
        return self._last[1]


def open_merged(base: Path, adapter: Path | None, merge_base: MergeBase = "w16") -> Merged:
    """Check that the adapter fits the base in every tensor, and open the view.

    AdapterError: not an adapter, of another base, or a kind that edgeft cannot merge.
    """
    names = Checkpoint(base).tensors
    deltas, replaced = ({}, {}) if adapter is None else _read_adapter(base, adapter, names)
    linear = frozenset(
        name
        for name, info in names.items()
        if len(info.shape) == 2 and not re.search(r"(embed_tokens|lm_head)\.weight$", name)
    )
    return Merged(base, deltas, replaced, merge_base, linear)


def adapter_manifest(adapter: Path) -> dict[str, Any]:
    """What training recorded about an adapter: {"options": …, "facts": …}, {} for a foreign one."""
    manifest = stage.read_manifest(adapter)
    if manifest is None or manifest.kind != "adapter":
        return {}
    return {"options": manifest.options, "facts": manifest.facts}


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


def _read_adapter(
    base: Path, adapter: Path, names: dict[str, Any]
) -> tuple[dict[str, _Delta], dict[str, Array]]:
    config = _mergeable(adapter)
    _check_lineage(base, adapter)
    weights = Checkpoint(adapter / "adapter_model.safetensors")
    pairs: dict[str, dict[str, Array]] = {}
    replaced: dict[str, Array] = {}
    for name in weights.tensors:
        match = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight", name)
        if match:
            pairs.setdefault(match[1], {})[match[2]] = weights.read(name)
            continue
        whole = re.fullmatch(r"base_model\.model\.(.+?)(?:\.modules_to_save)?\.(weight|bias)", name)
        target = f"{whole[1]}.{whole[2]}" if whole else name
        if target not in names:
            raise AdapterError(f"{adapter}: adapter tensor {name} has no place in {base.name}")
        replaced[target] = weights.read(name)
        _fits(adapter, base, target, replaced[target].shape, names[target].shape)
    if not pairs and not replaced:
        raise AdapterError(f"{adapter} holds no LoRA tensors")
    deltas = {}
    for module, pair in pairs.items():
        target = f"{module}.weight"
        if set(pair) != {"A", "B"}:
            raise AdapterError(f"{adapter}: {module} has only lora_{''.join(pair)}")
        if target not in names:
            raise AdapterError(
                f"{adapter}: adapts {module}, which {base.name} does not have",
                "it was trained on another base model",
            )
        a, b = pair["A"], pair["B"]
        _fits(adapter, base, target, (b.shape[0], a.shape[1]), names[target].shape)
        deltas[target] = _Delta(a, b, _scale(config, module, a.shape[0]))
    return deltas, replaced


def _mergeable(adapter: Path) -> dict[str, Any]:
    config = read_adapter_config(adapter)
    if config.get("peft_type") != "LORA":
        raise AdapterError(
            f"{adapter} is a {config.get('peft_type')} adapter", "edgeft merges LoRA adapters"
        )
    odd = [key for key in ("use_dora", "fan_in_fan_out", "target_parameters") if config.get(key)]
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


def _fits(
    adapter: Path, base: Path, name: str, got: tuple[int, ...], wanted: tuple[int, ...]
) -> None:
    if got != wanted:
        raise AdapterError(
            f"{adapter} does not fit {base.name}: {name} is {wanted}, the adapter's is {got}",
            "it was trained on another base model",
        )


def _scale(config: dict[str, Any], module: str, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732), alpha by pattern as in peft."""
    alpha = config.get("lora_alpha", rank)
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            alpha = value
            break
    return float(alpha / (rank**0.5 if config.get("use_rslora") else rank))


def to_json(proof: Proof) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(json.dumps(vars(proof)))
    return raw
