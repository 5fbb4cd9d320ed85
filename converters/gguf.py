"""Merged view -> GGUF in one pass: sum in float32, quantize, write, tensor by tensor.

    convert(merged, Path("q4_k_m.gguf"), "q4_k_m", threads=2)

There is no intermediate file and no bfloat16 step. Types per tensor and their bytes equal
llama-quantize's on the float32 model (`_ggml.py`). The vocabulary comes from tokenizer.json by its
structure, not by a list of known hashes; whether llama.cpp then cuts text into the same ids is
proved on the finished file (`edgeft.benchmarks.parity`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft import models
from edgeft.converters import _vocab
from edgeft.converters._ggml import FILE_TYPE, mixture, quantize
from edgeft.errors import FormatError, ProofError
from edgeft.merge import Merged
from edgeft.models.transforms import FORWARD


def convert(merged: Merged, out: Path, quant: str, threads: int) -> dict[str, Any]:
    """Write the file; returns facts for the manifest: tensors per type, bits per weight."""
    from gguf import GGUFWriter

    config, card = merged.config, merged.card
    names = {_gguf_name(card, name): name for name in merged.shapes}
    if config.get("tie_word_embeddings"):
        names.pop("output.weight", None)
    shapes = {gguf_name: merged.shapes[name] for gguf_name, name in names.items()}
    types = mixture(
        quant,
        shapes,
        arch=card.gguf_arch,
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        experts=0,
    )
    writer = GGUFWriter(out, card.gguf_arch)
    try:
        _metadata(writer, merged, quant)
        _vocab.write(writer, merged.base, shapes["token_embd.weight"][0])
        for gguf_name, qtype in types.items():
            _announce(writer, gguf_name, shapes[gguf_name], qtype)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for gguf_name, qtype in types.items():
            name = names[gguf_name]
            data = _encode(merged, name, gguf_name, qtype, threads)
            writer.write_tensor_data(data)
    finally:
        writer.close()
    weights = sum(int(np.prod(shape)) for shape in shapes.values())
    counts: dict[str, int] = {}
    for qtype in types.values():
        counts[qtype.name] = counts.get(qtype.name, 0) + 1
    return {
        "types": dict(sorted(counts.items())),
        "bits_per_weight": round(8 * out.stat().st_size / weights, 2),
    }


def _encode(
    merged: Merged, name: str, gguf_name: str, qtype: Any, threads: int
) -> npt.NDArray[np.uint8]:
    """The tensor's bytes; an adapted tensor's sample is read back from them for the proof."""
    from gguf import dequantize

    transform = merged.card.transform(gguf_name)
    summed = merged.tensor(name)
    values = FORWARD[transform](summed, merged.config) if transform else summed
    try:
        data = quantize(values, qtype, threads)
    except ValueError as error:
        raise ProofError(f"tensor {name} cannot be stored as {qtype.name}: {error}") from None
    if merged.adapted(name):
        rows = places = merged.sample(name)
        if transform:  # where the sampled rows went
            numbers = np.arange(len(values), dtype=np.float32)[:, None]
            moved = FORWARD[transform](numbers, merged.config)[:, 0]
            places = np.argsort(moved.astype(np.intp))[rows]
        kept = dequantize(np.ascontiguousarray(data[places]), qtype)
        merged.landed(name, summed[rows], kept)
    return data


def _announce(writer: Any, name: str, shape: tuple[int, ...], qtype: Any) -> None:
    from gguf import GGML_QUANT_SIZES

    block, size = GGML_QUANT_SIZES[qtype]
    row_bytes = shape[-1] // block * size
    byte_shape = (*shape[:-1], row_bytes)
    total = int(np.prod(byte_shape))
    writer.add_tensor_info(name, byte_shape, np.dtype(np.uint8), total, raw_dtype=qtype)


def _gguf_name(card: models.Card, name: str) -> str:
    found = card.gguf_name(name)
    if found is None:
        raise FormatError(
            f"the {card.family} card has no place for tensor {name}", "is it a variant?"
        )
    return found


def _metadata(writer: Any, merged: Merged, quant: str) -> None:
    config, card = merged.config, merged.card
    writer.add_type("model")
    writer.add_name(merged.base.name)
    writer.add_file_type(FILE_TYPE[quant])
    if FILE_TYPE[quant] not in (0, 1, 32):
        writer.add_quantization_version(2)
    config = {"head_dim": config["hidden_size"] // config["num_attention_heads"], **config}
    for key, source in card.hparams.items():
        value = config.get(source)
        if value is None:
            continue
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"{card.gguf_arch}.{key}", value)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind != "default":
        raise FormatError(f"GGUF export does not write rope scaling {kind!r} yet")
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10000.0
    writer.add_float32(f"{card.gguf_arch}.rope.freq_base", theta)
