"""A base folder -> the text model in it: config, card and tensors under the card's names.

    base = open_base(Path("gemma-3-4b-it"))
    base.config["architectures"], base.weights.read("model.norm.weight"), base.notes

What differs from a plain folder is resolved here, once for all readers: the wrapper of a multimodal
model, other names, quantized weights, files of torch.save. transformers does not read all of these
itself. Where `plain` is false it gets the tensors and `transformers_config(base.config)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeft import models
from edgeft.errors import FormatError, InputError
from edgeft.files import read_json
from edgeft.models.text_model import SCORE, names_classifier, no_language_model
from edgeft.weights import quantized_formats
from edgeft.weights.checkpoint import GPTQ, READABLE, Array, Checkpoint
from edgeft.weights.dtypes import FLOAT8_DTYPES
from edgeft.weights.pickled import is_pickled
from edgeft.weights.quantized_layer import LAYER_TYPES

_COMPARED_VALUES = 1 << 22
"""values of two tensors that are compared at once"""


@dataclass(frozen=True)
class TextBase:
    """The text model of a base folder."""

    folder: Path
    config: dict[str, Any]
    """config.json of the text model alone"""
    card: models.Card
    weights: Checkpoint
    """its tensors, under the names of the card"""
    plain: bool
    """whether transformers reads the folder itself, and reads the same"""
    notes: tuple[str, ...]
    """messages to the user"""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the checkpoint's tensors."""
        return {name: info.shape for name, info in self.weights.tensors.items()}

    def tensors(self) -> Iterator[tuple[str, Array]]:
        """(name, float32 values) of every tensor that holds weights."""
        for name in self.weights.tensors:
            if not self.card.ignores(name):
                yield name, self.weights.read(name)


def open_base(folder: Path) -> TextBase:
    """FormatError for a family without a card, InputError for weights that cannot be read, and for a reward
    model or another classifier."""
    stored_config = read_json(folder / "config.json")
    weights = Checkpoint(folder)
    if names_classifier(stored_config) and SCORE in weights.tensors:
        raise no_language_model(folder)
    text = models.text_model(stored_config)
    names = models.weight_names(weights.tensors, text.card, wrapped=bool(text.wrapper))
    weights.rename(names.stored)
    _check_readable(folder, weights, text.card)
    config, untied = _with_tying(
        _with_vocabulary(text.config, text.card, weights), text.card, weights
    )
    _check_shapes(folder, config, text.card, weights)
    layers = sorted({i.dtype for i in weights.tensors.values()} & set(LAYER_TYPES) - {GPTQ})
    method = weights.quantization.get("quant_method")
    pickled = any(is_pickled(info.file) for info in weights.tensors.values())
    notes = [*text.notes, names.note(), untied]
    if layers:
        notes.append(f"the base is quantized by {method} ({', '.join(layers)}): it is dequantized")
    return TextBase(
        folder, config, text.card, weights,
        plain=config == stored_config and not (names.renamed or names.left_out or pickled
                                               or weights.quantization),
        notes=tuple(filter(None, notes)),
    )  # fmt: skip


def _check_readable(folder: Path, weights: Checkpoint, card: models.Card) -> None:
    """InputError for a tensor that holds neither floats nor codes of a known format."""
    config = weights.quantization
    method = config.get("quant_method", GPTQ.lower())
    unread = {*FLOAT8_DTYPES} if method not in (GPTQ.lower(), *quantized_formats.READERS) else set()
    for name, info in weights.tensors.items():
        if card.ignores(name):
            continue
        if method != GPTQ.lower() and (info.dtype not in READABLE or info.dtype in unread):
            raise quantized_formats.refusal(config, folder)
        info.check_float(name)


def _check_shapes(
    folder: Path, config: dict[str, Any], card: models.Card, weights: Checkpoint
) -> None:
    """InputError for a weight of another shape than config.json says; rows of a vocabulary may differ.

    Who needs a size that config.json lacks reports it.
    """
    ends = [card.hf_name(end) for end in ("token_embd.weight", "output.weight")]
    try:
        shapes = models.tensor_shapes(card, config)
    except FormatError:
        return
    for name, shape in shapes.items():
        info = weights.tensors.get(name)
        first = 1 if name in ends else 0
        if info and info.shape[first:] != shape[first:] and all(shape):
            raise InputError(
                f"{info.file}: {name} has the shape {info.shape}, by config.json it is {shape}",
                "are both of the same model? download it again",
            )


def _with_vocabulary(
    config: dict[str, Any], card: models.Card, weights: Checkpoint
) -> dict[str, Any]:
    """With `vocab_size`, where config.json leaves it to the default of transformers' class."""
    embedding = weights.tensors.get(card.hf_name("token_embd.weight") or "")
    if embedding is None or not card.trains or config.get("vocab_size") is not None:
        return config
    return {**config, "vocab_size": embedding.shape[0]}


def _with_tying(
    config: dict[str, Any], card: models.Card, weights: Checkpoint
) -> tuple[dict[str, Any], str]:
    """(config, note): whether embedding and output layer are one weight, by the tensors.

    As in transformers' `tie_weights`: two different tensors are never tied, and where only the output
    layer is stored it is the embedding. InputError where a layer of its own is missing.
    """
    ends = [card.hf_name(end) for end in ("token_embd.weight", "output.weight")]
    embedding, output = (end if end in weights.tensors else None for end in ends)
    tied = bool(card.value(config, "tie_word_embeddings"))
    if tied and output and embedding is None and ends[0]:
        weights.rename({ends[0] if name == output else name: name for name in weights.tensors})
    elif tied and embedding and output and not _equal(weights, embedding, output):
        note = f"{embedding} and {output} differ, so they are not tied, though config.json says so"
        return {**config, "tie_word_embeddings": False}, note
    elif not tied and embedding and output is None and ends[1]:
        raise InputError(
            f"the base has no output layer ({ends[1]}), and its config.json does not tie it to the "
            "embedding",
            'put "tie_word_embeddings": true into config.json if the model is so, or take a model that '
            "was saved with its head (…ForCausalLM)",
        )
    return config, ""


def _equal(weights: Checkpoint, one: str, other: str) -> bool:
    shape = weights.tensors[one].shape
    if shape != weights.tensors[other].shape:
        return False
    step = max(1, _COMPARED_VALUES // shape[-1])
    spans = (slice(start, start + step) for start in range(0, shape[0], step))
    return all(np.array_equal(weights.rows(one, span), weights.rows(other, span)) for span in spans)
