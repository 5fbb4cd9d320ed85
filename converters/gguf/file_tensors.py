"""Base + type of a GGUF file -> where the file has each weight of the base, and in which type.

tensors = file_tensors(open_base(folder), "q4_k_m")
tensors["model.layers.0.self_attn.q_proj.weight"].rounding.name     # "Q4_K"

`digests` hashes the tensors of a finished file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from edgeft.errors import FormatError
from edgeft.merge.view import Merged
from edgeft.quantization.ggml import digest
from edgeft.quantization.rounding import FileTensor, GgmlRounding
from edgeft.quantization.tensor_types import choose_tensor_types, model_facts
from edgeft.weights import gguf_reader
from edgeft.weights.text_base import TextBase


def file_tensors(base: TextBase, quant: str) -> dict[str, FileTensor]:
    """Name in the checkpoint -> its place in the file, for every weight that is not float32 there.

    FormatError where a weight is not stored row by row: experts, and DeepSeek's split keys.
    """
    card, config = base.card, {**base.card.defaults, **base.config}
    shapes: dict[str, tuple[int, ...]] = {}
    places = []
    for name, gguf_name in _names(base):
        shape = base.weights.tensors[name].shape
        shapes[gguf_name] = card.transform(gguf_name).shape(shape, config)
        places.append((name, gguf_name))
    facts: dict[str, Any] = {"arch": card.gguf_arch, **model_facts(card, base.config)}
    types = choose_tensor_types(quant, shapes, **facts)
    tensors: dict[str, FileTensor] = {}
    for name, gguf_name in places:
        if types[gguf_name].name == "F32":
            continue
        transform = card.transform(gguf_name)
        if name in tensors or not transform.picks_rows or card.gguf_names(name)[1] is not None:
            raise FormatError(
                f"--ship: the {card.family} family's {name} is not stored row by row in a GGUF file",
                "train without --ship",
            )
        rows = transform.source_rows(slice(None), base.weights.tensors[name].shape, config)
        order = None if isinstance(rows, slice) else rows
        tensors[name] = FileTensor(gguf_name, GgmlRounding(types[gguf_name]), order)
    return tensors


def digests(path: Path, merged: Merged, names: Collection[str]) -> dict[str, tuple[str, str]]:
    """GGUF name -> (type, hash of its bytes) of those of `names` that the file has."""
    header = gguf_reader.read(path)
    return {
        name: (tensor.type.name, digest([gguf_reader.data(header, tensor)]))
        for name, tensor in header.tensors.items()
        if name in names
    }


def _names(base: TextBase) -> Iterator[tuple[str, str]]:
    """(name in the checkpoint, GGUF name) of every tensor of the file."""
    tied = base.card.value(base.config, "tie_word_embeddings")
    for name in base.weights.tensors:
        for gguf_name in base.card.gguf_names(name)[0]:
            if not base.card.ignores(name) and not (tied and gguf_name == "output.weight"):
                yield name, gguf_name
