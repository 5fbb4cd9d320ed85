"""The Merged view -> an ONNX decoder with a KV cache, as onnxruntime-genai runs it.

    convert(merged, make_plan(merged, "int4", options), out, options, landing)   # out: an empty folder

onnxruntime-genai's model builder makes the graph in float32, of lazy tensors
(`edgeft.converters.onnx.lazy_tensor`), so that the model is never in memory as a whole.
`edgeft.converters.onnx.weights` computes and writes its matrices. The graph computes the logits of
the last token only: a prompt needs no others.
"""

from __future__ import annotations

import contextlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edgeft.converters.folder import write_config_and_tokenizer
from edgeft.converters.onnx import matmul_nbits as nbits
from edgeft.converters.onnx.builders import builder_class
from edgeft.converters.onnx.recipe import Recipe, recipe_of
from edgeft.converters.options import ConvertOptions
from edgeft.errors import FormatError, require
from edgeft.formats import GPTQ_PREFIX
from edgeft.gptq.quantize import linears, quantize_blocks
from edgeft.merge.landing import LandingProof
from edgeft.merge.torch_model import config_of
from edgeft.merge.view import Merged
from edgeft.progress import quiet_libraries, say
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import id_to_token
from edgeft.tokenizer.stops import stop_ids
from edgeft.weights.onnx_config import CONFIG_FILE

PACKAGES = (
    "onnx", "onnxruntime", "onnxruntime_genai", "onnx_ir", "torch", "transformers", "accelerate",
)  # fmt: skip
BLOCK_COLUMNS = 32
"""default number of columns that share a scale"""
CACHE_TOKENS = 4096
"""tokens that a program's cache has room for by default; room for the whole context of a model may
take more memory than the model"""


def convert(
    merged: Merged, recipe: Recipe, out: Path, options: ConvertOptions, landing: LandingProof
) -> dict[str, Any]:
    """Write the folder; returns facts for the manifest. `options.calibration`: for gptq-int4."""
    import torch

    from edgeft.converters.onnx.graph_editor import DATA_FILE
    from edgeft.converters.onnx.weights import WeightWriter

    torch.set_num_threads(options.threads)
    quantized = None
    if options.calibration:
        grids = dict.fromkeys(linears(merged), recipe.grid)
        quantized = quantize_blocks(merged, grids, options.calibration, options.threads)
    builder = build_graph(merged, out)
    with (out / DATA_FILE).open("wb") as file:
        writer = WeightWriter(merged, builder, file, recipe, quantized, landing)
        writer.write()
    if inexact := writer.facts["inexact"]:
        say(
            f"{inexact} of {writer.facts['matrices']} matrices have codes that no block holds: "
            "they were rounded anew"
        )
    _save(builder, out)
    write_config_and_tokenizer(merged, out, "float32")
    _configure(merged, out)
    return writer.facts | (quantized.facts() if quantized else {})


def make_plan(merged: Merged, quant: str, options: ConvertOptions) -> Recipe:
    """Bits and blocks of the matrices; FormatError or MissingExtra for what cannot be written.

    `options.group_size`: columns that share a scale, one of `nbits.BLOCK_SIZES`.
    """
    size = options.group_size or BLOCK_COLUMNS
    if size not in nbits.BLOCK_SIZES:
        sizes = ", ".join(map(str, nbits.BLOCK_SIZES))
        raise FormatError(f"ONNX Runtime has no blocks of {size} columns", f"it has {sizes}")
    if quant.startswith(GPTQ_PREFIX):
        widths = {merged.shapes[name][1] for name in linears(merged)}
        if bad := next((width for width in sorted(widths) if width % size), None):
            raise FormatError(
                f"blocks of {size} do not divide a layer of {bad} columns", "another --group-size"
            )
    for package in PACKAGES:
        require(package, "onnx")
    with quiet_libraries():
        builder_class(config_of(merged))
    return recipe_of(quant, size)


def build_graph(merged: Merged, out: Path) -> Any:
    """The builder (`edgeft.converters.onnx.decoder.Decoder`) with its graph, without the matrices."""
    import onnx_ir as ir

    options = {"prune_lm_head": True, "windowed_kv_cache": False, "hf_token": False}
    with quiet_libraries(), contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
        config = config_of(merged)
        config._name_or_path = str(merged.tokenizer)
        dtype = ir.DataType.FLOAT
        builder = builder_class(config)(config, dtype, dtype, "cpu", str(out), options)
        builder.merged = merged
        builder.make_model("")
        builder.model.graph.sort()
        builder.make_genai_config(config, {}, str(out))
        return builder


def _save(builder: Any, out: Path) -> None:
    """Write the graph; its large constants are in DATA_FILE."""
    import onnx_ir as ir

    # The builder's own stamp adds the commit of whatever repository its packages lie in.
    builder.model.producer_version = version("onnxruntime-genai")
    ir.save(builder.model, out / builder.filename)


def _configure(merged: Merged, out: Path) -> None:
    """Write the template lock's stops and the vocabulary's size into genai_config.json."""
    path = out / CONFIG_FILE
    config = json.loads(path.read_text())
    chat = ChatTemplate.from_folder(out)
    ids = {text: i for i, text in id_to_token(out).items()}
    # The engine takes no stops beyond the vocabulary.
    stops = [stop for stop in stop_ids(chat, out) if 0 <= stop < merged.vocabulary]
    model, search = config["model"], config["search"]
    model["eos_token_id"] = stops or model["eos_token_id"]
    model["bos_token_id"] = ids.get(chat.bos_token, model["bos_token_id"])
    model["vocab_size"] = merged.vocabulary
    search |= {"do_sample": False, "max_length": min(CACHE_TOKENS, model["context_length"])}
    path.write_text(json.dumps(config, indent=1) + "\n")
