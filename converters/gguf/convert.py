"""Merged view and Plan -> a GGUF file in one pass: sum in float32, quantize, write.

    plan = make_plan(merged, "q4_k_m", options)
    facts = convert(merged, plan, Path("q4_k_m.gguf"), options, LandingProof(merged))

Several threads merge, quantize and write blocks of rows. There is no intermediate file and no
bfloat16 step, and memory does not grow with the model. Types and bytes of the tensors equal
llama-quantize's on the float32 model (`tensor_types.py`, `edgeft.quantization.ggml`). The vocabulary
follows the structure of tokenizer.json (`vocabulary.py`).
"""

from __future__ import annotations

import functools
import math
import struct
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft.converters.gguf import vocabulary
from edgeft.converters.gguf.plan import Plan, importance_rows, without_importance
from edgeft.converters.gguf.writer import write_tensors
from edgeft.converters.options import ConvertOptions
from edgeft.files import final_name
from edgeft.gptq.quantize import Calibration, QuantizedWeights, linears, quantize_blocks
from edgeft.gptq.solver import GgmlGrid
from edgeft.merge.landing import LandingProof
from edgeft.merge.view import Merged
from edgeft.quantization import ggml_blocks
from edgeft.quantization.tensor_types import FILE_TYPE
from edgeft.weights.checkpoint import Rows
from edgeft.weights.imatrix import Imatrix


def convert(
    merged: Merged, plan: Plan, out: Path, options: ConvertOptions, landing: LandingProof
) -> dict[str, Any]:
    """Write the file; return facts for the manifest: tensors per type, bits per weight.

    With `options.calibration` GPTQ quantizes the linear layers, in the types of the plan.
    The plan's block sources must hold the merged weights.
    """
    gptq_facts: dict[str, Any] = {}
    if (trained := merged.blocks()) and not options.imatrix:
        plan = plan.with_equal_blocks(trained)
    if options.calibration:
        blocks, solved = gptq_blocks(merged, plan, options.calibration, options.threads)
        plan, gptq_facts = plan.with_blocks(blocks), solved.facts()
    imatrix = options.imatrix
    importance = plan.importance
    if importance is None:
        importance = importance_rows(plan, imatrix)
    writer = _writer(out, merged.card.gguf_arch)
    try:
        _write_head(writer, merged, plan, imatrix)
        samples = write_tensors(writer, merged, plan, importance, options.threads, landing)
    finally:
        writer.close()
    for sample in samples:
        sample.check(out)
    weights = sum(math.prod(target.shape) for target in plan.targets.values())
    counts = Counter(qtype.name for qtype in plan.types.values())
    facts: dict[str, Any] = gptq_facts | {
        "types": dict(sorted(counts.items())),
        "bits_per_weight": round(8 * out.stat().st_size / weights, 2),
    }
    if imatrix:
        facts["without_importance"] = len(without_importance(plan, imatrix))
    return facts


def header_bytes(merged: Merged, plan: Plan, scratch: Path) -> int:
    """Bytes of the file before its tensors, without an importance matrix; `scratch` is written for it."""
    writer = _writer(scratch, merged.card.gguf_arch)
    try:
        _write_head(writer, merged, plan, None)
    finally:
        writer.close()
    return scratch.stat().st_size


class GPTQBlocks:
    """The `BlockSource` of the tensors that GPTQ quantized in ggml's types."""

    def __init__(self, solved: QuantizedWeights, grids: Mapping[str, GgmlGrid]) -> None:
        self._grids = grids
        self._tensor = functools.lru_cache(8)(lambda source: solved.read(source)["data"])

    def block_type(self, source: str) -> Any:
        return self._grids[source].qtype if source in self._grids else None

    def rows(self, source: str, rows: Rows) -> npt.NDArray[np.uint8]:
        data: npt.NDArray[np.uint8] = self._tensor(source)[rows]
        return data


def gptq_blocks(
    merged: Merged, plan: Plan, calibration: Calibration, threads: int
) -> tuple[GPTQBlocks, QuantizedWeights]:
    """Quantize by GPTQ the linear layers whose types have evenly spaced values."""
    linear_layers = set(linears(merged))
    grids = {
        part.source: GgmlGrid(plan.types[name])
        for name, target in plan.targets.items()
        for part in target.parts
        if part.source in linear_layers
        and part.transform.picks_rows
        and ggml_blocks.supports(plan.types[name])
    }
    solved = quantize_blocks(merged, grids, calibration, threads)
    return GPTQBlocks(solved, grids), solved


def _writer(out: Path, arch: str) -> Any:
    """A GGUFWriter that packs a large array, such as a vocabulary, in one step."""
    import gguf

    formats = {gguf.GGUFValueType.INT32: "i", gguf.GGUFValueType.FLOAT32: "f"}

    class Writer(gguf.GGUFWriter):  # type: ignore[misc]
        def _pack_val(self, val: Any, vtype: Any, *args: Any, **kwargs: Any) -> bytes:
            if vtype != gguf.GGUFValueType.ARRAY or len(val) < 1000:
                return bytes(super()._pack_val(val, vtype, *args, **kwargs))
            item_type = gguf.GGUFValueType.get_type(val[0])
            if item_type == gguf.GGUFValueType.STRING:
                packed = bytearray()
                for text in val:
                    raw = text.encode() if isinstance(text, str) else text
                    packed += struct.pack("<Q", len(raw)) + raw
            elif item_type in formats:
                packed = bytearray(struct.pack(f"<{len(val)}{formats[item_type]}", *val))
            else:
                return bytes(super()._pack_val(val, vtype, *args, **kwargs))
            return struct.pack("<IIQ", vtype, item_type, len(val)) + packed

    return Writer(out, arch)


def _write_head(writer: Any, merged: Merged, plan: Plan, imatrix: Imatrix | None) -> None:
    """Write everything that comes before the tensors."""
    _write_header(writer, merged, plan)
    if imatrix:
        _write_imatrix_keys(writer, imatrix)
    vocabulary.write(writer, merged.tokenizer, plan.targets["token_embd.weight"].shape[0])
    for name, qtype in plan.types.items():
        _add_tensor_info(writer, name, plan.shape(name), qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()


def _write_header(writer: Any, merged: Merged, plan: Plan) -> None:
    writer.add_type("model")
    writer.add_name(final_name(merged.base))
    file_type = FILE_TYPE[plan.quant]
    writer.add_file_type(file_type)
    if file_type not in (0, 1, 32):  # f32, f16, bf16
        writer.add_quantization_version(2)
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32,
              str: writer.add_string, list: writer.add_array}  # fmt: skip
    for key, value in plan.keys.items():
        adders[type(value)](key, value)


def _write_imatrix_keys(writer: Any, imatrix: Imatrix) -> None:
    """Write llama-quantize's keys for the origin of the importance matrix."""
    writer.add_string("quantize.imatrix.dataset", ", ".join(imatrix.datasets))
    writer.add_uint32("quantize.imatrix.entries_count", len(imatrix.tensors))
    writer.add_uint32("quantize.imatrix.chunks_count", imatrix.chunk_count)


def _add_tensor_info(writer: Any, name: str, shape: tuple[int, ...], qtype: Any) -> None:
    from gguf import GGML_QUANT_SIZES

    block_values, block_bytes = GGML_QUANT_SIZES[qtype]
    byte_shape = (*shape[:-1], shape[-1] // block_values * block_bytes)
    total = int(np.prod(byte_shape))
    writer.add_tensor_info(name, byte_shape, np.dtype(np.uint8), total, raw_dtype=qtype)
