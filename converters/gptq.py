"""Merged view -> a GPTQ folder for transformers, vLLM and GPTQModel.

    convert(merged, make_plan(merged, "4bit", options), out, options, landing)

GPTQ chooses the codes; without `options.calibration` each is the nearest, as for an adapter that was trained
for them. Linear layers are stored as codes in AutoGPTQ's layout (`edgeft.weights.gptq_layout`), all other
weights in float16. A group always consists of neighbouring columns, even where GPTQ quantized them
in another order. So a reader may ignore g_idx, and ggml's blocks can hold the same codes
(`edgeft.quantization.repack`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from edgeft.converters.folder import tensor_blocks, write_config_and_tokenizer
from edgeft.converters.options import ConvertOptions
from edgeft.errors import FormatError, ProofError
from edgeft.gptq.quantize import QuantizedWeights, check_computes, linears, quantize_blocks
from edgeft.gptq.solver import UniformGrid
from edgeft.merge.landing import LandingProof, sampled_rows
from edgeft.merge.view import Merged
from edgeft.quantization.rounding import CodesRounding
from edgeft.weights import gptq_layout
from edgeft.weights.checkpoint import Spec, write_safetensors

GROUP_SIZES = (128, 64, 32)
"""columns per group, the preferred size first"""
UNQUANTIZED_TYPE = "F16"
"""safetensors type of the weights without codes"""


def make_plan(merged: Merged, quant: str, options: ConvertOptions) -> UniformGrid:
    """Bits, group size and symmetry of the codes.

    The default group size is the largest of GROUP_SIZES that divides every layer. FormatError for an
    unsupported model, MissingExtra without the packages of GPTQ.
    """
    grid = code_grid(merged, quant, options.group_size, options.symmetric)
    check_computes(merged)
    return grid


def convert(
    merged: Merged, grid: UniformGrid, out: Path, options: ConvertOptions, landing: LandingProof
) -> dict[str, Any]:
    """Write the folder; return facts for the manifest. Without `options.calibration` nothing is solved.

    ProofError for a value that its type cannot hold.
    """
    calibration, coded = options.calibration, frozenset(linears(merged))
    solved = None
    if calibration:
        solved = quantize_blocks(merged, dict.fromkeys(coded, grid), calibration, options.threads)
    specs = [spec for name in merged.shapes for spec in _specs(merged, name, grid, coded)]
    arrays = (
        array
        for name in merged.shapes
        for array in (
            _code_arrays(merged, name, grid, solved, landing)
            if name in coded
            else [tensor_blocks(merged, name, UNQUANTIZED_TYPE, landing)]
        )
    )
    write_safetensors(out / "model.safetensors", specs, arrays)
    settings: dict[str, Any] = {"damp_percent": calibration.damp} if calibration else {}
    quantization_config = gptq_layout.quantization_config(
        grid.bits, grid.columns, grid.symmetric, checkpoint_format=_checkpoint_format(grid),
        **settings, **_unquantized_layer_settings(merged),
    )  # fmt: skip
    write_config_and_tokenizer(merged, out, "float16", quantization_config=quantization_config)
    (out / "quantize_config.json").write_text(json.dumps(quantization_config, indent=1) + "\n")
    return {"group_size": grid.columns} | (solved.facts() if solved else {"quantized": len(coded)})


def nearest(grid: UniformGrid) -> CodesRounding:
    """The rounding to the nearest codes of a symmetric grid."""
    return CodesRounding(grid.bits, grid.columns, "f16")


def code_grid(merged: Merged, quant: str, group_size: int | None, symmetric: bool) -> UniformGrid:
    bits = int(quant.removesuffix("bit"))
    codes_per_span, widths = gptq_layout.whole_words(bits), set()
    for name in linears(merged):
        rows, columns = merged.shapes[name]
        widths.add(columns)
        if rows % codes_per_span or columns % codes_per_span:
            raise FormatError(
                f"{bits}-bit codes of {name} do not fill whole words: {rows} x {columns}",
                f"multiples of {codes_per_span} are needed; --format gguf has other types",
            )
    fitting = [size for size in GROUP_SIZES if not any(width % size for width in widths)]
    size = group_size or next(iter(fitting), -1)
    undivided = next((width for width in sorted(widths) if size != -1 and width % size), None)
    if undivided:
        raise FormatError(
            f"groups of {size} do not divide a layer of {undivided} columns",
            f"--group-size {' or '.join(map(str, [*fitting, -1]))}",
        )
    return UniformGrid(bits, size, symmetric)


def _checkpoint_format(grid: UniformGrid) -> str:
    """v2 where zeros differ: GPTQModel accepts v1 with such zeros only in its own folders.

    https://github.com/ModelCloud/GPTQModel/blob/07e4066bc2be496653104f79ea65a70687248558/gptqmodel/models/loader.py
    """
    return "gptq" if grid.symmetric else "gptq_v2"


def _unquantized_layer_settings(merged: Merged) -> dict[str, Any]:
    """Settings that exclude the unquantized matrices of a block, such as routers; {} without any.

    vLLM and GPTQModel skip modules that `dynamic` names with "-:". optimum, the loader of
    transformers, quantizes only modules that end like an entry of its list of lists.
    https://github.com/vllm-project/vllm/blob/02239f5e05f4c7ace9e2bf85e59d800e6fb25a9e/vllm/model_executor/layers/quantization/utils/gptq_utils.py#L65-L87
    """
    solved = dict.fromkeys(linears(merged))
    unquantized = [
        name
        for name, shape in merged.shapes.items()
        if len(shape) == 2 and name not in solved
        and any(gguf_name.startswith("blk.") for gguf_name in merged.card.gguf_names(name)[0])
    ]  # fmt: skip
    if not unquantized:
        return {}
    skipped, quantized = (
        sorted({name.split(".")[-2] for name in names}) for names in (unquantized, solved)
    )
    return {
        "dynamic": {rf"-:.*\.{end}$": {} for end in skipped},
        "modules_in_block_to_quantize": [quantized],
    }


def _specs(merged: Merged, name: str, grid: UniformGrid, coded: frozenset[str]) -> Iterator[Spec]:
    if name not in coded:
        yield Spec(name, UNQUANTIZED_TYPE, merged.shapes[name])
        return
    for part, (dtype, shape) in gptq_layout.layout(
        merged.shapes[name], grid.bits, grid.columns
    ).items():
        yield Spec(name.removesuffix("weight") + part, dtype, shape)


def _code_arrays(
    merged: Merged,
    name: str,
    grid: UniformGrid,
    solved: QuantizedWeights | None,
    landing: LandingProof,
) -> Iterable[Any]:
    """The four arrays of a layer; its sampled rows are added to the proof."""
    try:
        codes = (
            grid.coded(solved.read(name)) if solved else nearest(grid).store(merged.tensor(name))
        )
    except ValueError as error:
        raise ProofError(f"{name}: {error}") from None
    rows = sampled_rows(*merged.shapes[name])
    summed = merged.rows(name, rows)
    landing.add(name, *merged.addends(name, rows), summed, codes.take(rows).values())
    return gptq_layout.pack(codes, gptq_layout.OFFSETS[_checkpoint_format(grid)]).values()
