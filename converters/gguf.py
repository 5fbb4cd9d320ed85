"""Merged view -> GGUF in one pass: sum in float32, quantize, write, tensor by tensor.

    convert(merged, Path("q4_k_m.gguf"), "q4_k_m", threads=2)

There is no intermediate file and no bfloat16 step, and memory does not grow with the model: rows
are merged, quantized and written in blocks, by `threads` at once. Types per tensor and their bytes
equal llama-quantize's on the float32 model (`_mixture.py`, `_ggml.py`). The vocabulary comes from
tokenizer.json by its structure, not by a list of known hashes; whether llama.cpp then cuts text
into the same ids is proved on the finished file (`edgeft.benchmarks.parity`).
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft.checkpoint import Array
from edgeft.converters import _vocab
from edgeft.converters._ggml import quantize
from edgeft.converters._metadata import metadata, rope_factors
from edgeft.converters._mixture import FILE_TYPE, mixture, needs_importance
from edgeft.converters._tensors import Part, Target, targets
from edgeft.errors import FormatError, ProofError
from edgeft.imatrix import Imatrix
from edgeft.merge import Merged

BLOCK_BYTES = 4 << 20
"""float32 that one thread merges and quantizes at a time"""


def convert(
    merged: Merged,
    out: Path,
    quant: str,
    threads: int,
    tensor_types: Sequence[tuple[str, str]] = (),
    imatrix: Imatrix | None = None,
) -> dict[str, Any]:
    """Write the file; returns facts for the manifest: tensors per type, bits per weight.

    `tensor_types` are (regex, type) for tensors that shall not have what `quant` gives them.
    """
    from gguf import GGUFWriter

    wanted, factors = targets(merged), rope_factors(merged)
    keys = metadata(merged)
    arch = merged.card.gguf_arch
    heads = keys[f"{arch}.attention.head_count"]
    shapes = {name: target.shape for name, target in wanted.items()}
    types = mixture(
        quant,
        shapes | {name: values.shape for name, values in factors.items()},
        arch=arch,
        layers=keys[f"{arch}.block_count"],
        heads=heads,
        kv_heads=keys.get(f"{arch}.attention.head_count_kv", heads),
        experts=keys.get(f"{arch}.expert_count", 0),
        imatrix=imatrix is not None,
        overrides=tensor_types,
    )
    for pattern, _ in tensor_types:
        if not any(re.search(pattern.lower(), name) for name in shapes):
            raise FormatError(f"no tensor's name matches {pattern!r}", f"a name is {min(shapes)}")
    importance = _importance(quant, types, wanted, imatrix)
    writer = GGUFWriter(out, arch)
    try:
        _header(writer, merged, quant, keys)
        if imatrix:
            _mark(writer, imatrix)
        _vocab.write(writer, merged.tokenizer, wanted["token_embd.weight"].shape[0])
        for name, qtype in types.items():
            shape = factors[name].shape if name in factors else wanted[name].shape
            _announce(writer, name, shape, qtype)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        assert writer.fout is not None
        file = writer.fout[0]
        with ThreadPoolExecutor(threads) as pool:
            for name, qtype in types.items():
                writer.write_padding(file, file.tell())
                if name in factors:
                    file.write(factors[name].tobytes())
                    continue
                for data in _encoded(merged, wanted[name], qtype, importance[name], pool, threads):
                    file.write(data.data)
        writer.write_padding(file, file.tell())
    finally:
        writer.close()
    weights = sum(int(np.prod(target.shape)) for target in wanted.values())
    counts: dict[str, int] = {}
    for qtype in types.values():
        counts[qtype.name] = counts.get(qtype.name, 0) + 1
    return {
        "types": dict(sorted(counts.items())),
        "bits_per_weight": round(8 * out.stat().st_size / weights, 2),
    }


@dataclass(frozen=True)
class _Block:
    data: npt.NDArray[np.uint8]
    given: Array
    """the block's sampled rows before the type"""
    kept: Array
    """and after it"""


def _encoded(
    merged: Merged,
    target: Target,
    qtype: Any,
    importance: Array | None,
    pool: ThreadPoolExecutor,
    threads: int,
) -> Iterator[npt.NDArray[np.uint8]]:
    """The tensor's bytes, block by block; what became of its sample is reported to the proof."""
    for number, part in enumerate(target.parts):
        weights = None if importance is None else importance[number]
        sample = part.sample(len(target.parts))
        step = max(1, BLOCK_BYTES * part.rows // (4 * int(np.prod(part.shape))))
        starts = iter(range(0, part.rows, step))
        running: deque[Future[_Block]] = deque()
        given, kept = [], []
        while True:
            while len(running) <= threads and (start := next(starts, None)) is not None:
                rows = slice(start, min(start + step, part.rows))
                running.append(pool.submit(_encode, merged, part, rows, sample, qtype, weights))
            if not running:
                break
            block = running.popleft().result()
            given.append(block.given)
            kept.append(block.kept)
            yield block.data
        merged.landed(
            part.source,
            lambda read, part=part, sample=sample: part.take(read, sample),  # type: ignore[misc]
            np.concatenate(given),
            np.concatenate(kept),
        )


def _encode(
    merged: Merged,
    part: Part,
    rows: slice,
    sample: npt.NDArray[np.intp],
    qtype: Any,
    importance: Array | None,
) -> _Block:
    from gguf import dequantize

    values = part.take(merged.rows, rows)
    matrix = values if values.ndim > 1 else values[None]
    try:
        data = quantize(matrix, qtype, threads=1, importance=importance)
    except ValueError as error:
        raise ProofError(f"{part.source} cannot be stored as {qtype.name}: {error}") from None
    inside = sample[(sample >= rows.start) & (sample < rows.stop)] - rows.start
    if values.ndim == 1:
        return _Block(data, values[inside], values[inside])
    kept = dequantize(np.ascontiguousarray(data[inside]), qtype) if len(inside) else values[inside]
    return _Block(data, values[inside], kept)


def _importance(
    quant: str, types: dict[str, Any], wanted: dict[str, Target], imatrix: Imatrix | None
) -> dict[str, Array | None]:
    """GGUF name -> (parts, columns); FormatError where the matrix lacks one that its type needs."""
    found: dict[str, Array | None] = {}
    for name, qtype in types.items():
        rows = imatrix.importance(name) if imatrix and name in wanted else None
        if rows is None and needs_importance(quant, name, qtype):
            raise FormatError(
                f"{qtype.name} of {name} needs an importance matrix, and it has none for it",
                "--imatrix auto, on chats that reach every expert; or a finer --quant",
            )
        if rows is not None:
            target = wanted[name]
            shape = (len(target.parts), target.shape[-1])
            if rows.size != math.prod(shape):
                raise FormatError(
                    f"the importance matrix is of another model: {name} is {rows.shape}, not {shape}"
                )
            rows = rows.reshape(shape)
        found[name] = rows
    return found


def _mark(writer: Any, imatrix: Imatrix) -> None:
    """As llama-quantize records where the importance came from."""
    writer.add_string("quantize.imatrix.dataset", ", ".join(imatrix.datasets))
    writer.add_uint32("quantize.imatrix.entries_count", len(imatrix.tensors))
    writer.add_uint32("quantize.imatrix.chunks_count", imatrix.chunk_count)


def _announce(writer: Any, name: str, shape: tuple[int, ...], qtype: Any) -> None:
    from gguf import GGML_QUANT_SIZES

    block, size = GGML_QUANT_SIZES[qtype]
    row_bytes = shape[-1] // block * size
    byte_shape = (*shape[:-1], row_bytes)
    total = int(np.prod(byte_shape))
    writer.add_tensor_info(name, byte_shape, np.dtype(np.uint8), total, raw_dtype=qtype)


def _header(writer: Any, merged: Merged, quant: str, keys: dict[str, Any]) -> None:
    writer.add_type("model")
    writer.add_name(merged.base.name)
    writer.add_file_type(FILE_TYPE[quant])
    if FILE_TYPE[quant] not in (0, 1, 32):
        writer.add_quantization_version(2)
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32,
              str: writer.add_string, list: writer.add_array}  # fmt: skip
    for key, value in keys.items():
        adders[type(value)](key, value)
