"""Base + type of a GGUF file -> where the file has each weight of the base, and in which type.

tensors = file_tensors(open_base(folder), "q4_k_m")
tensors["model.layers.0.self_attn.q_proj.weight"].qtype     # GGMLQuantizationType.Q4_K
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft.errors import FormatError, did_you_mean
from edgeft.quantization.ggml import UNQUANTIZED
from edgeft.quantization.nearest import has_scales
from edgeft.quantization.tensor_types import FILE_TYPE, choose_tensor_types, model_facts
from edgeft.weights.text_base import TextBase

TOO_SLOW, SHIP_HINT = (
    "its values are too slow to compute in every step",
    "q4_0, iq4_xs, or a K-quant such as q4_k_m",
)
FAST_TYPES = frozenset({"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16"})
"""types that ggml quantizes at 700 MB/s and more on one core; K-quants at 40 to 190, IQ types at 10"""


@dataclass(frozen=True)
class FileTensor:
    """A weight in the file."""

    name: str
    """GGUF name"""
    qtype: Any
    """GGMLQuantizationType"""
    order: npt.NDArray[np.intp] | None
    """row of the weight for each row of the file; None: the same rows"""


def check_ship(quant: str, base: TextBase) -> None:
    """FormatError for what is no type, one without rounding, or one that training cannot compute."""
    check_type(quant)
    for file in file_tensors(base, quant).values():
        if file.qtype.name not in FAST_TYPES and not has_scales(file.qtype):
            raise FormatError(
                f"--ship {quant}: {file.name} becomes {file.qtype.name}; {TOO_SLOW}", SHIP_HINT
            )


def check_type(quant: str) -> None:
    """FormatError for what is no type of llama-quantize, one without rounding, or the IQ3 types."""
    if quant in FILE_TYPE and quant.startswith("iq3"):
        raise FormatError(f"--ship {quant}: {TOO_SLOW}", SHIP_HINT)
    types = [name for name in FILE_TYPE if name.upper() not in UNQUANTIZED]
    if quant not in types:
        raise FormatError(
            f"--ship {quant} is no type of llama-quantize that rounds weights",
            did_you_mean(quant, types),
        )


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
        tensors[name] = FileTensor(gguf_name, types[gguf_name], order)
    return tensors


def _names(base: TextBase) -> Iterator[tuple[str, str]]:
    """(name in the checkpoint, GGUF name) of every tensor of the file."""
    tied = base.card.value(base.config, "tie_word_embeddings")
    for name in base.weights.tensors:
        for gguf_name in base.card.gguf_names(name)[0]:
            if not base.card.ignores(name) and not (tied and gguf_name == "output.weight"):
                yield name, gguf_name
