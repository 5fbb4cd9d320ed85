"""Merged view -> an ONNX decoder with a KV cache, as onnxruntime-genai runs it.

    convert(merged, make_plan(merged, "int4", options), out, options, landing)   # out: an empty folder

onnxruntime-genai's model builder makes the graph, in float32 and of deferred weights
(`edgeft.converters.onnx.deferred`), so that no matrix of the model is in memory; `_onnx_weights` puts them in.
Only the logits after the last token are computed, as a prompt needs no others.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from edgeft.converters.folder import finish
from edgeft.converters.onnx import matmul_nbits as nbits
from edgeft.converters.onnx.builders import builder_class
from edgeft.converters.onnx.deferred import deferred_model, is_deferred
from edgeft.converters.onnx.weights import DATA, Recipe, Weights
from edgeft.converters.options import ConvertOptions
from edgeft.errors import FormatError, require
from edgeft.gptq.quantize import linears, quantize
from edgeft.merge.landing import LandingProof
from edgeft.merge.torch_model import config_of
from edgeft.merge.view import Merged
from edgeft.progress import quiet_libraries, say
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import eos_ids, id_to_token

PACKAGES = (
    "onnx", "onnxruntime", "onnxruntime_genai", "onnx_ir", "torch", "transformers", "accelerate",
)  # fmt: skip
CONFIG = "genai_config.json"
BITS = {"f32": (0, 0, 0), "int8": (8, 8, 8), "int4-mixed": (4, 8, 8), "int4": (4, 8, 4)}
"""quantization -> bits of layers, of embedding and head, of the layers' most sensitive products"""
BLOCK = 32
"""columns that share a scale, unless another number is asked for"""
LONGEST = 4096
"""tokens that a program gets a cache for which does not ask for another number; the cache of all
that a model can read may be larger than the model"""


def convert(
    merged: Merged, rule: Recipe, out: Path, options: ConvertOptions, landing: LandingProof
) -> dict[str, Any]:
    """Write the folder; returns facts for the manifest. `options.calibration`: for gptq-int4."""
    import torch

    torch.set_num_threads(options.threads)
    solved = None
    if options.calibration:
        kinds = dict.fromkeys(linears(merged), rule.kind)
        solved = quantize(merged, kinds, options.calibration, options.threads)
    builder = _built(merged, out)
    with (out / DATA).open("wb") as file:
        weights = Weights(merged, builder, file, rule, solved, landing)
        weights.write()
    if lost := weights.facts["inexact"]:
        say(
            f"{lost} of {weights.facts['matrices']} matrices have codes that no block holds: they "
            "were rounded anew"
        )
    _save(builder, out)
    finish(merged, out, "float32")
    _configure(merged, out)
    return weights.facts | (solved.facts() if solved else {})


def make_plan(merged: Merged, quant: str, options: ConvertOptions) -> Recipe:
    """Bits and blocks of the matrices; FormatError or MissingExtra for what could not be written."""
    size = options.group_size or BLOCK
    if size not in nbits.BLOCKS:
        sizes = ", ".join(map(str, nbits.BLOCKS))
        raise FormatError(f"ONNX Runtime has no blocks of {size} columns", f"it has {sizes}")
    if quant.startswith("gptq-"):
        widths = {merged.shapes[name][1] for name in linears(merged)}
        if bad := next((width for width in sorted(widths) if width % size), None):
            raise FormatError(
                f"blocks of {size} do not divide a layer of {bad} columns", "another --group-size"
            )
    for package in PACKAGES:
        require(package, "onnx")
    with quiet_libraries():
        builder_class(config_of(merged))
    layers, head, sensitive = BITS[quant.removeprefix("gptq-")]
    return Recipe(layers, head, sensitive, size)


def _built(merged: Merged, out: Path) -> Any:
    """The builder with its graph; `deferred`: its weights by name."""
    import onnx_ir as ir

    with quiet_libraries(), contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
        config = config_of(merged)
        config._name_or_path = str(merged.tokenizer)
        kind = ir.DataType.FLOAT

        class Builder(builder_class(config)):  # type: ignore[misc]
            def load_weights(self, _: str) -> Any:
                return deferred_model(merged)

            def make_initializer(self, tensor: Any, /, name: str, **how: Any) -> None:
                if is_deferred(tensor):
                    self.deferred[name] = tensor
                    how["to"] = kind
                super().make_initializer(tensor, name, **how)

        options = {"prune_lm_head": True, "windowed_kv_cache": False, "hf_token": False}
        builder = Builder(config, kind, kind, "cpu", str(out), options)
        builder.deferred = {}
        builder.make_model("")
        builder.model.graph.sort()
        builder.make_genai_config(config, {}, str(out))
        return builder


def _save(builder: Any, out: Path) -> None:
    """The graph; what is large in it lies in DATA already."""
    import onnx_ir as ir

    builder.stamp_build_metadata(builder.model)
    ir.save(builder.model, out / builder.filename)


def _configure(merged: Merged, out: Path) -> None:
    """Stops and the like are those of the template lock, whatever the builder found or guessed."""
    path = out / CONFIG
    config = json.loads(path.read_text())
    chat = ChatTemplate.from_folder(out)
    known = {text: i for i, text in id_to_token(out).items()}
    stops = [*eos_ids(out), *(known[stop] for stop in chat.stops if stop in known)]
    stops = [stop for stop in stops if 0 <= stop < merged.vocabulary]  # the engine takes no others
    model, search = config["model"], config["search"]
    model["eos_token_id"] = list(dict.fromkeys(stops)) or model["eos_token_id"]
    model["bos_token_id"] = known.get(chat.bos_token, model["bos_token_id"])
    model["vocab_size"] = merged.vocabulary
    search |= {"do_sample": False, "max_length": min(LONGEST, model["context_length"])}
    path.write_text(json.dumps(config, indent=1) + "\n")
