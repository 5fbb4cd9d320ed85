"""Merged view -> GGUF in one pass: sum in float32, quantize, write, tensor by tensor.

    convert(merged, Path("q4_k_m.gguf"), "q4_k_m", threads=2)

There is no intermediate file and no bfloat16 step, and memory does not grow with the model: rows
are merged, quantized and written in blocks, by `threads` at once. Types per tensor and their bytes
equal llama-quantize's on the float32 model (`_mixture.py`, `edgeft.quantization.ggml`). The vocabulary comes
from tokenizer.json by its structure, not by a list of known hashes; whether llama.cpp then cuts
text into the same ids is proved on the finished file (`edgeft.benchmarks.fidelity.parity`).
"""

from __future__ import annotations

import functools
import math
import re
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft.converters.gguf import vocabulary
from edgeft.converters.gguf.metadata import metadata, rope_factors
from edgeft.converters.gguf.tensor_types import FILE_TYPE, mixture, needs_importance
from edgeft.converters.gguf.tensors import Target, targets
from edgeft.converters.gguf.writer import Plan, write_tensors
from edgeft.errors import FormatError
from edgeft.gptq.quantize import (
    Calibration,
    QuantizedWeights,
    check_computes,
    linears,
    quantize_blocks,
)
from edgeft.gptq.solver import GgmlGrid
from edgeft.merge.view import Merged
from edgeft.quantization import ggml_blocks
from edgeft.quantization.repack import BlockSource
from edgeft.weights.checkpoint import Array, Rows
from edgeft.weights.imatrix import Imatrix

SOLVED = "gptq-"
"""before the name of a quantization: its linear layers are quantized by GPTQ"""


def plan(
    merged: Merged,
    quant: str,
    tensor_types: Sequence[tuple[str, str]] = (),
    imatrix: bool = False,
    coded: BlockSource | None = None,
) -> Plan:
    """FormatError for what cannot be written, before anything is."""
    arch = merged.card.gguf_arch
    try:
        wanted, factors, keys = targets(merged), rope_factors(merged), metadata(merged)
        heads = keys[f"{arch}.attention.head_count"]
        facts = {
            "layers": keys[f"{arch}.block_count"],
            "heads": heads,
            "kv_heads": keys.get(f"{arch}.attention.head_count_kv", heads),
            "experts": keys.get(f"{arch}.expert_count", 0),
        }
    except (KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
        raise FormatError(
            f"config.json of {merged.base} is not one of the {merged.card.family} family: "
            f"{type(error).__name__} {error}",
            "is it whole, and the one that came with the weights?",
        ) from None
    shapes = {name: target.shape for name, target in wanted.items()}
    types = mixture(
        quant,
        shapes | {name: values.shape for name, values in factors.items()},
        arch=arch,
        imatrix=imatrix,
        overrides=tensor_types,
        **facts,
    )
    for pattern, _ in tensor_types:
        if not any(re.search(pattern.lower(), name) for name in shapes):
            raise FormatError(f"no tensor's name matches {pattern!r}", f"a name is {min(shapes)}")
    given = _given(wanted, coded) if coded else {}
    return Plan(wanted, factors, keys, types | given, dict.fromkeys(given, coded) if coded else {})


def _given(wanted: dict[str, Target], coded: BlockSource) -> dict[str, Any]:
    """The types of the tensors that `coded` has whole, and in one type."""
    found = {}
    for name, target in wanted.items():
        kinds = {coded.kind(part.source) for part in target.parts}
        if len(kinds) == 1 and None not in kinds and all(p.transform.picks for p in target.parts):
            found[name] = kinds.pop()
    return found


def convert(
    merged: Merged,
    out: Path,
    quant: str,
    threads: int,
    tensor_types: Sequence[tuple[str, str]] = (),
    imatrix: Imatrix | None = None,
    coded: BlockSource | None = None,
    calibration: Calibration | None = None,
) -> dict[str, Any]:
    """Write the file; returns facts for the manifest: tensors per type, bits per weight.

    `tensor_types` are (regex, type) for tensors that shall not have what `quant` gives them. What
    `coded` has is taken from there, whatever the type; it has to be of the merged weights. With
    `calibration` the weights of the blocks are quantized by GPTQ, within the types of `quant`.
    """
    quant = quant.removeprefix(SOLVED)
    more: dict[str, Any] = {}
    if calibration:
        wanted = plan(merged, quant, tensor_types, imatrix is not None)
        coded, solved = _solved(merged, wanted, calibration, threads)
        more = solved.facts()
    made = plan(merged, quant, tensor_types, imatrix is not None, coded)
    importance = _importance(quant, made, imatrix)
    writer = _writer(out, merged.card.gguf_arch)
    try:
        _header(writer, merged, quant, made.keys)
        if imatrix:
            _mark(writer, imatrix)
        rows = made.targets["token_embd.weight"].shape[0]
        vocabulary.write(writer, merged.tokenizer, rows)
        for name, qtype in made.types.items():
            _announce(writer, name, made.shape(name), qtype)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        samples = write_tensors(writer, merged, made, importance, threads, quant)
    finally:
        writer.close()
    for sample in samples:
        sample.check(out)
    weights = sum(math.prod(target.shape) for target in made.targets.values())
    counts = Counter(qtype.name for qtype in made.types.values())
    facts: dict[str, Any] = more | {
        "types": dict(sorted(counts.items())),
        "bits_per_weight": round(8 * out.stat().st_size / weights, 2),
    }
    if imatrix:
        facts["without_importance"] = len(_without(made, imatrix))
    return facts


class _InBlocks:
    """`BlockSource` of what GPTQ solved within ggml's types."""

    def __init__(self, solved: QuantizedWeights, kinds: Mapping[str, GgmlGrid]) -> None:
        self._solved, self._kinds = solved, kinds
        self._whole = functools.lru_cache(8)(lambda source: solved.read(source)["data"])

    def kind(self, source: str) -> Any:
        return self._kinds[source].qtype if source in self._kinds else None

    def rows(self, source: str, rows: Rows) -> npt.NDArray[np.uint8]:
        found: npt.NDArray[np.uint8] = self._whole(source)[rows]
        return found


def _solved(
    merged: Merged, made: Plan, calibration: Calibration, threads: int
) -> tuple[BlockSource, QuantizedWeights]:
    """The linear layers whose types hold evenly spaced values, quantized by GPTQ."""
    can = set(linears(merged))
    kinds = {
        part.source: GgmlGrid(made.types[name])
        for name, target in made.targets.items()
        for part in target.parts
        if part.source in can and part.transform.picks and ggml_blocks.supports(made.types[name])
    }
    solved = quantize_blocks(merged, kinds, calibration, threads)
    return _InBlocks(solved, kinds), solved


def _writer(out: Path, arch: str) -> Any:
    """gguf's writer, which packs arrays an item at a time: a vocabulary has 450,000 of them."""
    import gguf

    kinds = {gguf.GGUFValueType.INT32: "i", gguf.GGUFValueType.FLOAT32: "f"}

    class Writer(gguf.GGUFWriter):  # type: ignore[misc]
        def _pack_val(self, val: Any, vtype: Any, *args: Any, **kwargs: Any) -> bytes:
            if vtype != gguf.GGUFValueType.ARRAY or len(val) < 1000:
                return bytes(super()._pack_val(val, vtype, *args, **kwargs))
            of = gguf.GGUFValueType.get_type(val[0])
            if of == gguf.GGUFValueType.STRING:
                packed = bytearray()
                for text in val:
                    raw = text.encode() if isinstance(text, str) else text
                    packed += struct.pack("<Q", len(raw)) + raw
            elif of in kinds:
                packed = bytearray(struct.pack(f"<{len(val)}{kinds[of]}", *val))
            else:
                return bytes(super()._pack_val(val, vtype, *args, **kwargs))
            return struct.pack("<IIQ", vtype, of, len(val)) + packed

    return Writer(out, arch)


def check(
    merged: Merged,
    quant: str,
    tensor_types: Sequence[tuple[str, str]] = (),
    imatrix: Imatrix | None = None,
    measured: bool = False,
) -> None:
    """FormatError for what `convert` would refuse; `measured`: importance comes only later."""
    if quant.startswith(SOLVED):
        check_computes(merged)
    quant = quant.removeprefix(SOLVED)
    made = plan(merged, quant, tensor_types, measured or imatrix is not None)
    if measured:
        return
    _importance(quant, made, imatrix)
    if imatrix and 2 * len(_without(made, imatrix)) > len(_quantized(made)):
        raise FormatError(
            f"the importance matrix is of another model: it has nothing for {quant}'s tensors, "
            f"such as {_without(made, imatrix)[0]}",
            "llama-imatrix on the model itself, or --imatrix auto",
        )


def _quantized(made: Plan) -> list[str]:
    """Tensors for which importance matters; llama-imatrix gathers none of embedding and output."""
    ends = ("token_embd.weight", "output.weight")
    whole = ("F32", "F16", "BF16")
    return [n for n, kind in made.types.items() if kind.name not in whole and n not in ends]


def _without(made: Plan, imatrix: Imatrix) -> list[str]:
    return [name for name in _quantized(made) if name not in imatrix.tensors]


def _importance(quant: str, made: Plan, imatrix: Imatrix | None) -> dict[str, Array | None]:
    """GGUF name -> (matrices, columns); FormatError where one is lacking that its type needs."""
    found: dict[str, Array | None] = {}
    for name, qtype in made.types.items():
        rows = imatrix.importance(name) if imatrix and name in made.targets else None
        if rows is None and needs_importance(quant, name, qtype):
            raise FormatError(
                f"{qtype.name} of {name} needs an importance matrix, and it has none for it",
                "--imatrix auto, on chats that reach every expert; or a finer --quant",
            )
        if rows is not None:
            wanted = made.targets[name].shape
            shape = (math.prod(wanted[:-2]), wanted[-1])
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
