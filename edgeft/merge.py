"""Base + adapter -> the Merged view: rows of one tensor at a time, in float32, with a landing proof.

    merged = open_merged(base, adapter, merge_base="nf4")
    for name in merged.shapes:
        values = merged.rows(name, slice(0, 1024))            # W + s·B·A of these rows
        merged.landed(name, take, given, kept)                # sampled rows: given, and what is kept
    print(merged.proof())                         # raises ProofError when the adapter did not land

Nothing is written and no torch is needed: a converter consumes the view, so base and adapter become
a 4-bit file without a merged copy, and without the bfloat16 sum in which small deltas vanish. Only
the rows that are asked for come into memory, however large a tensor is.

`merge_base` says what the delta is added to: "w16", the stored weights, or "nf4", the values that a
QLoRA adapter saw while it was trained (`edgeft.nf4`).

The landing coefficient of a tensor is beta = <W' - W, sBA> / |sBA|^2: 1 = landed, 0 = not there,
2 = merged twice; a wrong scale shows as a factor. It is taken twice: of the sum that went into the
converter, where it has to be 1 in every tensor, and of what the output type kept of it. A coarse
type keeps less or answers with a gain, above all where W lies on a grid itself (NF4 values); that
is told, and refused where it cannot be told from a lost or a doubled merge. Where there is no
change, the rows that went into the converter have to be the base's.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgeft import models, nf4, stage
from edgeft.adapter import Change, Whole, read_adapter
from edgeft.checkpoint import Array, Checkpoint, Rows
from edgeft.errors import ProofError
from edgeft.template import read_json

MergeBase = Literal["w16", "nf4"]
Reader = Callable[[str, Rows], Array]
"""(tensor, rows) -> values"""
Take = Callable[[Reader], Array]
"""a converter's way from a reader of the base's tensors to the rows of its own"""

SAMPLE = 1 << 18
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


class Merged:
    """See the module's docstring; made by `open_merged`."""

    def __init__(
        self,
        base: Path,
        weights: Checkpoint,
        changes: dict[str, Change],
        merge_base: MergeBase,
    ) -> None:
        self.base = base
        self.config = read_json(base / "config.json")
        self.card = models.card_for(self.config)
        self.merge_base = merge_base
        self.shapes = {
            name: changes[name].shape if name in changes else info.shape
            for name, info in weights.tensors.items()
            if not self.card.ignores(name)
        }
        self.tied = bool(self.card.value(self.config, "tie_word_embeddings"))
        """the output layer is the embedding"""
        self._weights = weights
        self._changes = changes
        self._lock = threading.Lock()
        self._seen: tuple[str, nf4.Quantized] | None = None
        self._sums: dict[str, npt.NDArray[np.float64]] = {}

    def tensor(self, name: str) -> Array:
        """One whole merged weight, float32."""
        return self.rows(name, slice(None)).reshape(self.shapes[name])

    def rows(self, name: str, rows: Rows) -> Array:
        """Some rows of a merged weight, float32: (rows, columns), or elements of a vector."""
        change = self._changes.get(name)
        if isinstance(change, Whole):
            return change.rows(rows)
        before = self.base_rows(name, rows)
        return before if change is None else before + change.delta(rows, before)

    def base_rows(self, name: str, rows: Rows) -> Array:
        """The same rows of the base, which the change is added to."""
        if self.merge_base != "nf4" or not self.card.in_4bit(name, self.shapes[name]):
            return self._weights.rows(name, rows)
        with self._lock:
            if self._seen is None or self._seen[0] != name:
                height, width = self.shapes[name]
                read = partial(_between, self._weights, name)
                self._seen = name, nf4.quantized(read, (height, width))
            seen = self._seen[1]
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(seen.shape[0])
            return seen.rows(start, stop)
        first, last = int(rows.min()), int(rows.max())
        if last - first < 2 * len(rows):
            return seen.rows(first, last + 1)[rows - first]
        return np.concatenate([seen.rows(row, row + 1) for row in rows.tolist()])

    def adapted(self, name: str) -> bool:
        """Whether a delta is added to it; a tensor that was saved whole has none."""
        return name in self._changes and not isinstance(self._changes[name], Whole)

    def landed(self, name: str, take: Take, given: Array, kept: Array) -> None:
        """Report sampled rows of what became of a tensor.

        `given` is what went into the output type, `kept` what is left of it, `take` how the same
        rows come from any reader of the base's tensors.
        """
        if not self.adapted(name):
            if not np.array_equal(given, take(self.rows)):
                raise ProofError(f"{name} is not the base's, and no adapter changed it")
            return
        before, delta = take(self.base_rows), take(self._delta_rows)
        pairs = (
            (delta, delta),
            (before, before),
            (given - before, delta),
            (kept - before, delta),
            (kept - given, kept - given),
        )
        sums = np.array([np.vdot(x, y) for x, y in pairs], np.float64)
        self._sums[name] = self._sums.get(name, 0) + sums

    def _delta_rows(self, name: str, rows: Rows) -> Array:
        before = self.base_rows(name, rows)
        change = self._changes.get(name)
        return np.zeros_like(before) if change is None else change.delta(rows, before)

    def proof(self) -> Proof:
        """The proof over everything reported so far; ProofError when the adapter is not there."""
        missing = [name for name in filter(self.adapted, self.shapes) if name not in self._sums]
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


def open_merged(base: Path, adapter: Path | None, merge_base: MergeBase = "w16") -> Merged:
    """Check that the adapter fits the base in every tensor, and open the view.

    AdapterError: not an adapter, of another base, or a kind that edgeft cannot merge.
    """
    weights = Checkpoint(base)
    card = models.card_for(read_json(base / "config.json"))
    changes = {} if adapter is None else read_adapter(adapter, base, weights, card)
    return Merged(base, weights, changes, merge_base)


def _between(weights: Checkpoint, name: str, start: int, stop: int) -> Array:
    return weights.rows(name, slice(start, stop))


def adapter_manifest(adapter: Path) -> dict[str, Any]:
    """What training recorded about an adapter: {"options": …, "facts": …}, {} for a foreign one."""
    manifest = stage.read_manifest(adapter)
    if manifest is None or manifest.kind != "adapter":
        return {}
    return {"options": manifest.options, "facts": manifest.facts}


def to_json(proof: Proof) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(json.dumps(vars(proof)))
    return raw
