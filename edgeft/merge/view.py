"""Base + adapter -> the Merged view: any rows of a merged weight, in float32.

    merged = open_merged(base, adapter, base_precision="nf4")
    for name in merged.shapes:
        values = merged.rows(name, slice(0, 1024))            # W + s·B·A of these rows

The view writes nothing and needs no torch. A converter reads it, so base and adapter become a 4-bit
file without a merged copy on disk and without a bfloat16 sum, which would lose small deltas. Memory
holds the requested rows, for tensors of any size. The view is immutable and safe for threads.
`edgeft.merge.landing` proves that the adapter's change arrives in the file.

A weight in `modules_to_save` replaces the base's. An embedding and an output layer that share a
weight are untied where the adapter changes them differently (`edgeft.merge.tied_weights`). An adapter
with additional tokens has its own tokenizer files, which replace the base's. A reward model has a scalar
head, `score.weight`, in place of the output layer.

`base_precision` names the values that the delta is added to: "stored", the stored weights, or "nf4",
"fp4" or "int8", the values that a QLoRA adapter saw in training (`edgeft.merge.base_weights`). They are equal
to the last bit where the adapter's manifest says how edgeft trained it. An adapter that was trained from a GGUF
file (`--ship-from`) has "file": that file's values with the codes that the training moved.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeft import models
from edgeft.adapter.config import adapter_manifest
from edgeft.adapter.deltas import WeightDelta
from edgeft.adapter.folder import file_facts
from edgeft.adapter.read import Weighted, read_adapters
from edgeft.adapter.tokenizer import tokenizer_folder
from edgeft.errors import AdapterError, InputError
from edgeft.merge.base_weights import BasePrecision, BaseWeights, QuantizedBase
from edgeft.merge.tied_weights import resized_vocabulary, untied_weights
from edgeft.merge.trained_file import TrainedFile
from edgeft.models.text_model import QUANTIZATION_KEYS, SCORE, reward_config
from edgeft.quantization.ggml import row_blocks
from edgeft.weights import gptq_layout
from edgeft.weights.checkpoint import Array, Rows
from edgeft.weights.text_base import TextBase, open_base


class Merged:
    """The merged model as rows of its tensors; made by `open_merged`."""

    def __init__(
        self,
        text: TextBase,
        changes: Mapping[str, WeightDelta],
        adapters: Sequence[Path] = (),
        double_quant: bool = True,
    ) -> None:
        weights, config, base = text.weights, text.config, text.folder
        self.base = base
        """folder of the base"""
        self.plain = text.plain
        """whether transformers reads the base's folder itself"""
        self.config = {k: v for k, v in config.items() if k not in QUANTIZATION_KEYS}
        """config.json of the result, without quantization_config: the view's values are float32"""
        self.card = text.card
        self.is_reward_model = SCORE in changes
        """whether it rates texts by a scalar head, `score.weight`, and writes none"""
        if self.is_reward_model:
            changes = _without_untying(self.card, changes)
        tied = untied_weights(self.card, config, changes)
        self.tied = tied.tied
        """whether the output layer is the embedding"""
        self.notes = [*text.notes, *tied.notes]
        """messages to the user about the result"""
        if tied.untied:
            self.config["tie_word_embeddings"] = False
        self._weights = weights
        self._changes = tied.changes
        self._source = tied.source
        embedding, output = tied.embedding, tied.output
        self._embedding = embedding
        self.shapes = {
            name: self._changes[name].shape if name in self._changes else self._stored_shape(name)
            for name in dict.fromkeys((*weights.tensors, *self._source))
            if not self.card.ignores(name) and not (self.tied and name == output)
            and (self.card.gguf_names(name)[0] or not weights.padding(name))
        }  # fmt: skip
        """tensor of the checkpoint -> shape of the merged weight"""
        if self.is_reward_model:
            self.shapes.pop(output, None)
            self.shapes[SCORE] = changes[SCORE].shape
            self.config |= reward_config(self.config)
        vocab_rows = {
            name: self.shapes[name][0] for name in (embedding, output) if name in self.shapes
        }
        if set(vocab_rows) & set(self._changes):
            stored = self._stored_shape(embedding)[0]
            if (rows := resized_vocabulary(vocab_rows)) != stored:
                self.notes.append(f"the adapter's embeddings have {rows} rows, the base's {stored}")
                self.config["vocab_size"] = rows
        rows = self.shapes.get(embedding, (0,))[0]
        self.tokenizer = tokenizer_folder(base, adapters, rows)
        """folder of the tokenizer files"""
        self.replaced = sum(bool(c.whole or c.tokens) for c in self._changes.values())
        """number of tensors of which the adapter holds all values or some rows"""
        self._double_quant, self._training = double_quant, _training_facts(adapters)
        self.base_precision: BasePrecision = "stored"
        """values that the delta is added to"""
        self._base: BaseWeights = weights
        self._from_file: TrainedFile | None = None
        """of a training with --ship-from: the file that it began with"""

    def with_base(self, precision: BasePrecision) -> Merged:
        """The same adapter with another base precision; reads no file again."""
        view = copy.copy(self)
        view.base_precision = precision
        if (precision == "file") is not (self._from_file is not None):
            raise InputError(
                "an adapter that was trained from a GGUF file (--ship-from) is merged into that file, "
                "and no other one is",
                "leave --base-precision out",
            )
        if precision == "file":
            return view
        view._changes = {name: change.on_other_base() for name, change in self._changes.items()}
        view._base = self._weights
        if precision != "stored":
            view._base = QuantizedBase(
                self._weights, self.card, precision, self._double_quant, self._training
            )
        return view

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding."""
        return self.shapes[self._embedding][0]

    def base_tensors(self) -> Iterator[tuple[str, Array]]:
        """Every tensor of the checkpoint: (name, the float32 values that the delta is added to)."""
        for name, info in self._weights.tensors.items():
            if not self.card.ignores(name):
                yield name, self._base.rows(name, slice(None)).reshape(info.shape)

    def bytes_as(self, bits: float) -> int:
        """Bytes of all weights at `bits` per weight, and 16 MB for metadata."""
        return int(sum(math.prod(shape) for shape in self.shapes.values()) * bits / 8) + 16_000_000

    def tensor(self, name: str) -> Array:
        """One whole merged weight, float32; summed in the blocks of `row_blocks`, as a training with --ship
        and a GGUF file sum it: a product of other matrices may differ in its last bits."""
        shape = self.shapes[name]
        if not self.adapted(name) or len(shape) != 2:
            return self.rows(name, slice(None)).reshape(shape)
        values = np.empty(shape, np.float32)
        for rows in row_blocks(*shape):
            values[rows] = self.rows(name, rows)
        return values

    def rows(self, name: str, rows: Rows) -> Array:
        """Some rows of a merged weight, float32: (rows, columns), or elements of a vector."""
        if self._from_file and self.adapted(name):
            return self._from_file.values(name, rows)
        values, change = self._base_rows(name, rows), self._changes.get(name)
        if change and change.deltas:
            values = values + self._delta(change, name, rows, values)
        if change and change.tokens:
            values = change.tokens.place(rows, values, self.shapes[name][0])
        return values

    def addends(self, name: str, rows: Rows) -> tuple[Array, Array | None]:
        """The two addends of `rows`: (the base's values, the delta), for the landing proof.

        For a tensor without a delta: (`rows`, None).
        """
        if not self.adapted(name):
            return self.rows(name, rows), None
        before = self._base_rows(name, rows)
        if self._from_file:
            return before, self.rows(name, rows) - before
        return before, self._delta(self._changes[name], name, rows, before)

    def blocks(self) -> TrainedFile | None:
        """The bytes of the file that a training with --ship-from wrote into, None for any other adapter."""
        return self._from_file

    def adapted(self, name: str) -> bool:
        """Whether a delta is added to the tensor; a tensor of `modules_to_save` has none."""
        return name in self._changes and bool(self._changes[name].deltas)

    def codes(self, name: str) -> gptq_layout.Codes | None:
        """GPTQ codes of an unchanged layer of a quantized base, else None."""
        if name in self._changes or self.base_precision != "stored":
            return None
        return self._weights.codes(self._source.get(name, name))

    def _base_rows(self, name: str, rows: Rows) -> Array:
        change = self._changes.get(name)
        if change and change.whole:
            return change.whole.by_rows()[rows]
        return self._base.rows(self._source.get(name, name), rows)

    def _delta(self, change: WeightDelta, name: str, rows: Rows, before: Array) -> Array:
        return change.delta(rows, before, lambda more_rows: self._base_rows(name, more_rows))

    def _stored_shape(self, name: str) -> tuple[int, ...]:
        return self._weights.tensors[self._source.get(name, name)].shape


def open_merged(
    base: Path,
    adapter: Path | Sequence[Weighted] | None,
    base_precision: BasePrecision = "stored",
    double_quant: bool = True,
) -> Merged:
    """Open base and adapters, and check that every adapter fits the base in every tensor.

    `double_quant`: whether training quantized the maxima of the 4-bit blocks, too
    (bitsandbytes' use_double_quant), where the adapter's manifest does not say it. FormatError: a family or type of weights that edgeft cannot
    read. AdapterError: no adapter, one of another base, or one that edgeft cannot merge.
    """
    adapters = [Weighted(adapter)] if isinstance(adapter, Path) else list(adapter or ())
    text = open_base(base)
    changes = read_adapters(adapters, base, text.weights, text.card, text.config)
    paths = [entry.path for entry in adapters]
    view = Merged(text, changes, paths, double_quant)
    if any(file_facts(path) for path in paths):
        if [entry.weight for entry in adapters] != [1.0]:
            raise AdapterError(
                "an adapter that was trained from a GGUF file (--ship-from) is merged alone",
                "sum the adapters that it and the others began with",
            )
        view._from_file = TrainedFile.of(paths[0], view.card, view.config, changes, view.shapes)
        view._base, view.base_precision = view._from_file.base(text.weights), "file"
        return view
    return view if base_precision == "stored" else view.with_base(base_precision)


def _without_untying(
    card: models.Card, changes: Mapping[str, WeightDelta]
) -> Mapping[str, WeightDelta]:
    """The changes of a reward model, whose embedding has no output layer to be untied from."""
    embedding, output = card.hf_name("token_embd.weight"), card.hf_name("output.weight")
    if embedding and output and embedding in changes:
        return {**changes, output: changes[embedding]}
    return changes


def _training_facts(adapters: Sequence[Path]) -> dict[str, Any]:
    """How training computed with the 4-bit base of a single adapter, where its manifest says so."""
    facts = adapter_manifest(adapters[0]).get("facts", {}) if len(adapters) == 1 else {}
    nf4_facts: dict[str, Any] = facts.get("nf4", {})
    return nf4_facts
