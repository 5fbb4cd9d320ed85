"""`edgeft merge-export`: adapter (+ base) -> artifacts that run, each proved on the way."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from edgeft.cli._options import comma_list, configurable, finite, json_option, print_json
from edgeft.errors import InputError


def _weighted(
    ctx: click.Context, param: click.Parameter, value: tuple[str, ...]
) -> tuple[tuple[Path, float], ...]:
    """PATH or PATH:WEIGHT; a colon that no number follows belongs to the path."""
    found = []
    for text in value:
        path, _, number = text.rpartition(":")
        try:
            weight = float(number) if path and not Path(text).exists() else None
        except ValueError:
            weight = None
        if weight is not None and not (math.isfinite(weight) and weight):
            raise InputError(f"no weight for an adapter: {text}", "such as --adapter PATH:0.5")
        found.append((Path(text), 1.0) if weight is None else (Path(path), weight))
    return tuple(found)


def _tensor_types(
    ctx: click.Context, param: click.Parameter, value: tuple[str, ...]
) -> tuple[tuple[str, str], ...]:
    found = []
    for text in value:
        pattern, equals, kind = text.rpartition("=")
        if not (equals and pattern and kind):
            raise click.BadParameter(f"{text!r} is not REGEX=TYPE")
        found.append((pattern, kind.lower()))
    return tuple(found)


@click.command(
    "merge-export", short_help="Merge and quantize: adapter -> GGUF or ONNX, proved to be it."
)
@click.option(
    "--adapter",
    multiple=True,
    metavar="PATH[:WEIGHT]",
    callback=_weighted,
    help="Adapter in peft's format; repeatable, summed by weight [1]. Without one the base is "
    "exported as it is.",
)
@click.option(
    "--base",
    help="Base model: a Hugging Face folder, a .gguf, a hub id or an embedded one such as "
    "smollm2-135m.  [default: the one that the adapter was trained on]",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder for the artifacts, made where there is none.",
)
@click.option(
    "--format",
    "formats",
    multiple=True,
    default=("gguf",),
    show_default=True,
    callback=comma_list,
    help="gguf (for llama.cpp), onnx (for ONNX Runtime), gptq (4-bit codes for transformers, vLLM and "
    "GPTQModel) or hf (a merged Hugging Face folder); repeatable.",
)
@click.option(
    "--quant",
    "quants",
    multiple=True,
    callback=comma_list,
    help="Types of the weights, such as f16,q8_0,q4_k_m, from exact to small; gptq-q4_0 and "
    "gptq-q4_k_m are calibrated; of onnx f32, int8, int4-mixed, gptq-int4, int4; of gptq 8bit, 4bit, "
    "3bit, 2bit; repeatable.  [default: q4_k_m, for onnx int4, for gptq 4bit, for hf f32]",
)
@click.option(
    "--merge-base",
    type=click.Choice(["auto", "w16", "nf4", "fp4"]),
    default="auto",
    show_default=True,
    help="What the adapter is added to: w16, the weights as they are stored, or nf4 or fp4, the "
    "4-bit values that a QLoRA saw; auto measures on the validation split which fits better.",
)
@click.option(
    "--double-quant/--no-double-quant",
    default=True,
    show_default=True,
    help="Whether the 4-bit base of the training was quantized twice (bnb_4bit_use_double_quant).",
)
@click.option(
    "--validation",
    type=click.Path(path_type=Path),
    help="Chats that training did not see, for --merge-base auto.  [default: what training held out]",
)
@click.option(
    "--imatrix",
    metavar="auto|FILE",
    help="Importance matrix, by which coarse types lose less: a file of llama-imatrix, or auto, "
    "measured on the chats that were learned and kept as imatrix.gguf.",
)
@click.option(
    "--calibration",
    metavar="auto|FILE",
    default="auto",
    show_default=True,
    help="What GPTQ and --imatrix auto learn from: a file of chats (.json, .jsonl) or of plain text; "
    "auto, the chats of the training.",
)
@click.option(
    "--calibration-tokens",
    type=click.IntRange(min=1),
    default=32_768,
    show_default=True,
    help="How much of it, at most.",
)
@click.option(
    "--group-size",
    type=click.Choice(["auto", "32", "64", "128", "-1"]),
    default="auto",
    show_default=True,
    help="Of --format gptq and onnx: columns that share a scale, -1 for a whole row (gptq); auto, the "
    "largest that divides every layer, for onnx 32.",
)
@click.option(
    "--symmetric/--asymmetric",
    default=True,
    show_default=True,
    help="Of --format gptq: whether zero lies in the middle of the codes.",
)
@click.option(
    "--damp",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.01,
    show_default=True,
    callback=finite,
    help="Of GPTQ: how much of the mean is added to the Hessian's diagonal; it grows by itself where "
    "that is not enough.",
)
@click.option("--offload", is_flag=True, help="GPTQ keeps its activations on disk, not in memory.")
@click.option(
    "--tensor-type",
    "tensor_types",
    multiple=True,
    metavar="REGEX=TYPE",
    callback=_tensor_types,
    help="Another type for the tensors whose GGUF name matches, such as ffn_down=q6_k; repeatable, "
    "the first that matches counts.",
)
@click.option(
    "--live/--no-live",
    default=True,
    show_default=True,
    help="Compare the artifact's answers with base and adapter in float32, unmerged (needs the "
    "train extra and the memory; without either it is left out, with a note).",
)
@click.option("--threads", type=click.IntRange(min=1), help="[default: all cores]")
@click.option("--overwrite", is_flag=True, help="Replace artifacts of another run.")
@json_option
@configurable
def command(threads: int | None, group_size: str, as_json: bool, **options: Any) -> None:
    """Merge in float32 and write each artifact in one pass, then prove that it is the model.

    \b
    edgeft merge-export --adapter adapter --out out --format gguf --quant q4_k_m,q8_0,f16
    edgeft merge-export --adapter adapter --out out --quant gptq-q4_0
    edgeft merge-export --adapter adapter --out out --format gptq --quant 4bit --group-size 128
    edgeft merge-export --adapter adapter --out out --format onnx --quant int4
    """
    from edgeft.adapter.read import Weighted
    from edgeft.export.options import ExportOptions
    from edgeft.export.pipeline import export

    options["adapter"] = tuple(Weighted(path, weight) for path, weight in options["adapter"])
    if threads:
        options["threads"] = threads
    chosen = options["calibration"]
    options["calibration"] = None if chosen == "auto" else Path(chosen)
    options["group_size"] = None if group_size == "auto" else int(group_size)
    artifacts = export(ExportOptions(**options))
    if as_json:
        print_json({"artifacts": [
            {"path": str(a.path), "format": a.format, "quant": a.quant, **a.manifest.facts}
            for a in artifacts
        ]})  # fmt: skip
        return
    for artifact in artifacts:
        click.echo(str(artifact.path))
