"""Base + adapter -> the Merged view: rows of one tensor at a time, in float32, with a landing proof.

    merged = open_merged(base, adapter, merge_base="nf4")
    for name in merged.shapes:
        values = merged.rows(name, slice(0, 1024))            # W + s·B·A of these rows
        merged.landed(name, take, given, kept)                # sampled rows: given, and what is kept
    print(merged.proof())                         # raises ProofError when the adapter did not land

Nothing is written and no torch is needed: a converter consumes the view, so base and adapter become
a 4-bit file without a merged copy, and without the bfloat16 sum in which small deltas vanish. Only
the rows that are asked for come into memory, however large a tensor is.

A weight that an adapter holds whole (`modules_to_save`) is taken from it. Where embedding and
output layer share a weight and the adapter changes them differently, they are two weights from here
on, and where it brings tokens of its own, its tokenizer goes before the base's.

`merge_base` says what the delta is added to: "w16", the stored weights, or "nf4" or "fp4", the values
that a QLoRA adapter saw while it was trained (`edgeft.merge.base_weights`), to the last bit where its
manifest says how edgeft trained it.

The landing coefficient of a tensor is beta = <W' - W, sBA> / |sBA|^2: 1 = landed, 0 = not there,
2 = twice. It is taken of the rows that the converter was given, where it has to be 1 in every
tensor, and of what the output type kept of them. A coarse type keeps less or answers with a gain,
above all where W lies on a grid itself (NF4 values); that is told, and refused where it cannot be
told from a lost or a doubled merge. Where there is no change, the rows that the converter was given
have to be the base's. So this proves what became of the adapter's change on the way into the file;
that the change is the right one (its scale, its place) is what the logits of the live adapter prove
on the finished file (`edgeft.export.verify`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft import models
from edgeft.adapter.config import adapter_manifest
from edgeft.adapter.deltas import WeightDelta
from edgeft.adapter.read import Weighted, read_adapters
from edgeft.adapter.tokenizer import tokenizer_folder
from edgeft.errors import AdapterError, ProofError
from edgeft.files import read_json
from edgeft.merge.base_weights import BaseWeights, MergeBase
from edgeft.merge.landing import EXACT, LOST, TWICE, ZERO, Proof, Take
from edgeft.weights import gptq_layout
from edgeft.weights.checkpoint import Array, Checkpoint, Rows


class Merged:
    """See the module's docstring; made by `open_merged`."""

    def __init__(
        self,
        base: Path,
        weights: Checkpoint,
        changes: dict[str, WeightDelta],
        merge_base: MergeBase,
        adapters: Sequence[Path] = (),
        double_quant: bool = True,
    ) -> None:
        self.base = base
        self.config = read_json(base / "config.json")
        self.config.pop("quantization_config", None)  # the view's values are in no codes
        self.card = models.card_for(self.config)
        self.tied = bool(self.card.value(self.config, "tie_word_embeddings"))
        """the output layer is the embedding"""
        self.notes: list[str] = []
        """what the user should know about the result"""
        self._weights = weights
        self._changes = changes
        self._source: dict[str, str] = {}
        embedding = self.card.hf_name("token_embd.weight") or ""
        output = self.card.hf_name("output.weight") or ""
        self._ends = embedding, output
        self._separate()
        self.shapes = {
            name: changes[name].shape if name in changes else self._stored_shape(name)
            for name in dict.fromkeys((*weights.tensors, *self._source))
            if not self.card.ignores(name) and not (self.tied and name == output)
            and (self.card.gguf_names(name)[0] or not weights.padding(name))
        }  # fmt: skip
        self._resize()
        rows = self.shapes.get(embedding, (0,))[0]
        self.tokenizer = tokenizer_folder(base, adapters, rows)
        """folder of the tokenizer files"""
        self._double_quant, self._recorded = double_quant, _recorded(adapters)
        self._set_base(merge_base)

    def on(self, merge_base: MergeBase) -> Merged:
        """The same adapter on other values of the base; nothing is read again."""
        view = copy.copy(self)
        view._set_base(merge_base)
        return view

    def _set_base(self, kind: MergeBase) -> None:
        self.merge_base = kind
        self._base = BaseWeights(self._weights, self.card, kind, self._double_quant, self._recorded)
        self._sums: dict[str, npt.NDArray[np.float64]] = {}

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding."""
        return self.shapes[self._ends[0]][0]

    def base_tensors(self) -> Iterator[tuple[str, Array]]:
        """Every tensor of the checkpoint, with the values that the adapter is added to."""
        for name, info in self._weights.tensors.items():
            if not self.card.ignores(name):
                yield name, self._base.rows(name, slice(None)).reshape(info.shape)

    def bytes_as(self, bits: float) -> int:
        """Of all weights, at so many bits each; some of the metadata, too."""
        return int(sum(math.prod(shape) for shape in self.shapes.values()) * bits / 8) + 16_000_000

    def tensor(self, name: str) -> Array:
        """One whole merged weight, float32."""
        return self.rows(name, slice(None)).reshape(self.shapes[name])

    def rows(self, name: str, rows: Rows) -> Array:
        """Some rows of a merged weight, float32: (rows, columns), or elements of a vector."""
        values, change = self.base_rows(name, rows), self._changes.get(name)
        if change and change.deltas:
            values = values + self._delta(change, name, rows, values)
        if change and change.tokens:
            values = change.tokens.place(rows, values, self.shapes[name][0])
        return values

    def base_rows(self, name: str, rows: Rows) -> Array:
        """The same rows of the base, which the change is added to."""
        change = self._changes.get(name)
        if change and change.whole:
            return change.whole.by_rows()[rows]
        return self._base.rows(self._source.get(name, name), rows)

    def codes(self, name: str) -> gptq_layout.Codes | None:
        """Those of a layer that GPTQ quantized and no adapter changes; None for any other tensor."""
        if name in self._changes or self.merge_base != "w16":
            return None
        return self._weights.codes(self._source.get(name, name))

    def adapted(self, name: str) -> bool:
        """Whether a delta is added to it; a tensor that was saved whole has none."""
        return name in self._changes and bool(self._changes[name].deltas)

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
        return np.zeros_like(before) if change is None else self._delta(change, name, rows, before)

    def _delta(self, change: WeightDelta, name: str, rows: Rows, before: Array) -> Array:
        return change.delta(rows, before, lambda wanted: self.base_rows(name, wanted))

    def _stored_shape(self, name: str) -> tuple[int, ...]:
        return self._weights.tensors[self._source.get(name, name)].shape

    def _separate(self) -> None:
        """Untie embedding and output layer where the adapter makes two weights of them.

        peft's live adapter changes the layer that it wraps and leaves the other one the weight that
        they shared; `merge_and_unload` may write the change into both.
        """
        if not self.tied:
            return
        embedding, output = self._ends
        one, other = self._changes.get(embedding), self._changes.get(output)
        if one and not output:
            raise AdapterError(
                f"the {self.card.family} family has no output layer of its own, and the adapter "
                f"changes {embedding}"
            )
        if one is other or (one and one.equals(other)):
            self._changes.pop(output, None)
            return
        self.notes.append(
            f"the adapter changes {embedding} and {output} differently: they are no longer tied"
        )
        self._source[output] = embedding
        self.tied = self.config["tie_word_embeddings"] = False

    def _resize(self) -> None:
        """The vocabulary is as large as the embeddings that the adapter brings."""
        rows = {name: self.shapes[name][0] for name in self._ends if name in self.shapes}
        if not any(name in self._changes for name in rows):
            return
        if len(set(rows.values())) > 1:
            raise AdapterError(
                "the adapter brings other numbers of tokens: "
                + ", ".join(f"{name} has {count} rows" for name, count in rows.items()),
                "save both embedding layers with it",
            )
        (count,) = set(rows.values())
        before = self._stored_shape(self._ends[0])[0]
        if count != before:
            self.notes.append(f"the adapter's embeddings have {count} rows, the base's {before}")
            self.config["vocab_size"] = count

    def proof(self) -> Proof:
        """The proof over everything reported so far; ProofError when the adapter is not there."""
        missing = [name for name in filter(self.adapted, self.shapes) if name not in self._sums]
        if missing:
            raise ProofError(f"{len(missing)} adapted tensors were not written: {missing[0]}, …")
        replaced = sum(bool(c.whole or c.tokens) for c in self._changes.values())
        whole = np.sum(list(self._sums.values()), axis=0) if self._sums else np.zeros(5)
        size, weight, _, kept, noise = whole
        # A tensor whose delta is zero has nothing to land.
        moving = {name: sums for name, sums in self._sums.items()
                  if sums[0] > ZERO**2 * sums[1]}  # fmt: skip
        if self._sums and not moving and not replaced:
            raise ProofError(
                "the adapter is zero everywhere: the result would be the base model",
                "train it, or export the base without --adapter",
            )
        if not moving:
            return Proof(0, 1.0, 1.0, 1.0, 0.0, 0.0, self.merge_base, replaced)
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
            delta=float(np.sqrt(size / weight)) if weight else 1.0,
            noise=float(np.sqrt(noise / size)),
            merge_base=self.merge_base,
            replaced=replaced,
        )
        if not LOST < proof.beta < TWICE:
            raise ProofError(
                f"the adapter did not land: of its {proof.delta:.2%} change this type keeps "
                f"beta {proof.beta:.3f} (1 = landed, 0 = lost, 2 = twice)",
                "a finer --quant",
            )
        return proof


def open_merged(
    base: Path,
    adapter: Path | Sequence[Weighted] | None,
    merge_base: MergeBase = "w16",
    double_quant: bool = True,
) -> Merged:
    """Check that every adapter fits the base in every tensor, and open the view.

    `double_quant` is of the 4-bit merge bases: whether the blocks' maxima were quantized, too.
    AdapterError: not an adapter, of another base, or a kind that edgeft cannot merge.
    """
    adapters = [Weighted(adapter)] if isinstance(adapter, Path) else list(adapter or ())
    weights, config = Checkpoint(base), read_json(base / "config.json")
    changes = read_adapters(adapters, base, weights, models.card_for(config), config)
    paths = [entry.path for entry in adapters]
    return Merged(base, weights, changes, merge_base, paths, double_quant)


def _recorded(adapters: Sequence[Path]) -> dict[str, Any]:
    """How the 4-bit base of a single adapter was computed with, where its training says so."""
    facts = adapter_manifest(adapters[0]).get("facts", {}) if len(adapters) == 1 else {}
    found: dict[str, Any] = facts.get("nf4", {})
    return found
