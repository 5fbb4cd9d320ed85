"""Merged view -> a GPTQ folder, as transformers, vLLM and GPTQModel read it.

    convert(merged, make_plan(merged, "4bit", options), out, options, landing)

Linear layers become codes in AutoGPTQ's layout (`edgeft.weights.gptq_layout`), all other weights
float16. A group is a run of neighbouring columns, in whatever order the columns were quantized. So
a reader may ignore g_idx, and ggml's blocks can hold the same codes
(`edgeft.quantization.repack`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeft.converters.folder import finish, tensor_blocks
from edgeft.converters.options import ConvertOptions
from edgeft.errors import FormatError
from edgeft.gptq.quantize import QuantizedWeights, check_computes, linears, quantize_blocks
from edgeft.gptq.solver import UniformGrid
from edgeft.merge.landing import LandingProof, sampled_rows
from edgeft.merge.view import Merged
from edgeft.weights import gptq_layout
from edgeft.weights.checkpoint import Spec, write_safetensors

GROUP_SIZES = (128, 64, 32)
"""columns of a group, by preference"""
UNQUANTIZED_TYPE = "F16"
"""of the weights without codes, in safetensors"""


def make_plan(merged: Merged, quant: str, options: ConvertOptions) -> UniformGrid:
    """Bits, group size and symmetry of the codes.

    The default group size is the largest of GROUP_SIZES that divides every layer. FormatError or
    MissingExtra for what could not be written.
    """
    kind = _kind(merged, quant, options.group_size, options.symmetric)
    check_computes(merged)
    return kind


def convert(
    merged: Merged, kind: UniformGrid, out: Path, options: ConvertOptions, landing: LandingProof
) -> dict[str, Any]:
    """Write the folder; returns facts for the manifest. `options.calibration` is needed."""
    calibration = options.calibration
    assert calibration is not None
    kinds = dict.fromkeys(linears(merged), kind)
    solved = quantize_blocks(merged, kinds, calibration, options.threads)
    specs = [spec for name in merged.shapes for spec in _specs(merged, name, kind, solved)]
    arrays = (
        array for name in merged.shapes for array in _arrays(merged, name, kind, solved, landing)
    )
    write_safetensors(out / "model.safetensors", specs, arrays)
    about = gptq_layout.quantization_config(
        kind.bits, kind.columns, kind.symmetric, checkpoint_format=_layout(kind),
        damp_percent=calibration.damp, **_left(merged),
    )  # fmt: skip
    finish(merged, out, "float16", quantization_config=about)
    (out / "quantize_config.json").write_text(json.dumps(about, indent=1) + "\n")
    return {"group_size": kind.columns, **solved.facts()}


def _kind(merged: Merged, quant: str, group_size: int | None, symmetric: bool) -> UniformGrid:
    bits = int(quant.removesuffix("bit"))
    span, widths = gptq_layout.whole_words(bits), set()
    for name in linears(merged):
        rows, columns = merged.shapes[name]
        widths.add(columns)
        if rows % span or columns % span:
            raise FormatError(
                f"{bits}-bit codes of {name} do not fill whole words: {rows} x {columns}",
                f"multiples of {span} are needed; --format gguf has other types",
            )
    fitting = [size for size in GROUP_SIZES if not any(width % size for width in widths)]
    size = group_size or next(iter(fitting), -1)
    bad = next((width for width in sorted(widths) if size != -1 and width % size), None)
    if bad:
        raise FormatError(
            f"groups of {size} do not divide a layer of {bad} columns",
            f"--group-size {' or '.join(map(str, [*fitting, -1]))}",
        )
    return UniformGrid(bits, size, symmetric)


def _layout(kind: UniformGrid) -> str:
    """v2 where zeros are not all the same: GPTQModel takes those of v1 from itself alone.

    https://github.com/ModelCloud/GPTQModel/blob/07e4066bc2be496653104f79ea65a70687248558/gptqmodel/models/loader.py
    """
    return "gptq" if kind.symmetric else "gptq_v2"


def _left(merged: Merged) -> dict[str, Any]:
    """Where matrices of a block stay as they are, such as routers: settings that tell readers so.

    vLLM and GPTQModel leave out what `dynamic` names with "-:"; optimum, which loads for
    transformers, takes for quantized what ends like an entry of its list of lists.
    https://github.com/vllm-project/vllm/blob/02239f5e05f4c7ace9e2bf85e59d800e6fb25a9e/vllm/model_executor/layers/quantization/utils/gptq_utils.py#L65-L87
    """
    solved = dict.fromkeys(linears(merged))
    left = [
        name
        for name, shape in merged.shapes.items()
        if len(shape) == 2 and name not in solved
        and any(place.startswith("blk.") for place in merged.card.gguf_names(name)[0])
    ]  # fmt: skip
    if not left:
        return {}
    kept, quantized = (sorted({name.split(".")[-2] for name in some}) for some in (left, solved))
    return {
        "dynamic": {rf"-:.*\.{end}$": {} for end in kept},
        "modules_in_block_to_quantize": [quantized],
    }


def _specs(
    merged: Merged, name: str, kind: UniformGrid, solved: QuantizedWeights
) -> Iterator[Spec]:
    if name not in solved:
        yield Spec(name, UNQUANTIZED_TYPE, merged.shapes[name])
        return
    for part, (dtype, shape) in gptq_layout.layout(
        merged.shapes[name], kind.bits, kind.columns
    ).items():
        yield Spec(name.removesuffix("weight") + part, dtype, shape)


def _arrays(
    merged: Merged, name: str, kind: UniformGrid, solved: QuantizedWeights, landing: LandingProof
) -> Iterator[Any]:
    if name not in solved:
        yield tensor_blocks(merged, name, UNQUANTIZED_TYPE, landing)
        return
    codes = kind.coded(solved.read(name))
    rows = sampled_rows(*merged.shapes[name])
    summed = merged.rows(name, rows)
    landing.add(name, *merged.addends(name, rows), summed, codes.take(rows).values())
    yield from gptq_layout.pack(codes, gptq_layout.OFFSETS[_layout(kind)]).values()
