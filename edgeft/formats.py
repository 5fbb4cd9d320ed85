"""The table of artifact formats: which converter writes each, which runtime opens it, what it needs.

A new format is one converter, one runtime and one row here. Entries are strings, so that reading the
table imports nothing: ``load(row.converter)`` imports on use.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft.errors import FormatError, InputError, did_you_mean
from edgeft.files import read_text

GPTQ_PREFIX = "gptq-"
"""of a quantization that GPTQ makes in the types of the one without it"""


@dataclass(frozen=True)
class Format:
    """One row of the table."""

    name: str
    """as in --format"""
    plan: str
    """module:function of `make_plan(merged, quant, options) -> plan`; refuses what cannot be written"""
    converter: str
    """module:function of `convert(merged, plan, out, options, landing) -> facts`"""
    runtime: str
    """module:class with the methods of `edgeft.runtimes.protocol.Runtime`"""
    suffix: str
    """suffix of the artifact's file name; "" for a folder"""
    quants: tuple[str, ...]
    """from the most to the least exact"""
    default: tuple[str, ...]
    """quantizations without --quant"""
    takes: tuple[str, ...] = ()
    """options of `edgeft.export.ExportOptions` that this format has and others lack"""
    solved: tuple[str, ...] = ()
    """quantizations that GPTQ makes, which needs calibration data"""
    sized: str = ""
    """the quantization that fits --max-size, which needs calibration data, too"""
    nearest: tuple[str, ...] = ()
    """quantizations that a training can compute with (--ship): each weight becomes the nearest value, without
    calibration. A type of `solved` is calibrated unless the adapter was trained for it."""
    tensors: str = ""
    """module:function of `file_tensors(base, quant) -> {tensor of the checkpoint: FileTensor}`, for `nearest`"""
    digests: str = ""
    """module:function of `digests(path, merged, names) -> {name of a FileTensor: (type, hash)}`"""
    prepare: str = ""
    """module:function of `prepare(path, threads)`: makes the file that the runtime opens, once"""
    engines: tuple[str, ...] = ("llama-cpp-python",)
    """packages whose version can change an answer"""
    reference: str = ""
    """module:class of the runtime that computes the same weights in float32 by torch; "" = none"""
    trial: str = ""
    """module:function of `check(path)`: InputError where the engine would end the process that opens
    the artifact; "" = the engine raises its errors"""
    inspect: str = "edgeft.report.describe:describe_folder"
    """module:function of `describe(path) -> {section: {name: value}}`, for `edgeft inspect`"""

    @property
    def by_torch(self) -> bool:
        """Whether the artifact always runs on the reference, as the live model does."""
        return self.runtime == self.reference


FORMATS = {
    row.name: row
    for row in (
        Format(
            name="gguf",
            plan="edgeft.converters.gguf.plan:make_plan",
            converter="edgeft.converters.gguf.convert:convert",
            runtime="edgeft.runtimes.gguf:GGUFRuntime",
            suffix=".gguf",
            quants=(
                "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0",
                "gptq-q4_k_m", "q4_k_m", "q4_k_s", "gptq-q4_0", "iq4_nl", "iq4_xs", "q4_1", "q4_0",
                "q3_k_l", "gptq-q3_k_m", "q3_k_m", "iq3_m", "iq3_s", "q3_k_s", "iq3_xs", "iq3_xxs",
                "gptq-q2_k", "q2_k", "q2_k_s", "auto",
            ),
            sized="auto",
            solved=("gptq-q4_k_m", "gptq-q4_0", "gptq-q3_k_m", "gptq-q2_k"),
            nearest=(
                "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0", "q4_k_m", "q4_k_s", "iq4_nl", "iq4_xs",
                "q4_1", "q4_0", "q3_k_l", "q3_k_m", "q3_k_s", "q2_k", "q2_k_s",
            ),
            tensors="edgeft.converters.gguf.file_tensors:file_tensors",
            digests="edgeft.converters.gguf.file_tensors:digests",
            default=("q4_k_m",),
            takes=("imatrix", "tensor_types", "max_size"),
            trial="edgeft.runtimes.trial:check_survives",
            inspect="edgeft.report.describe:describe_gguf",
        ),
        Format(
            name="hf",
            plan="edgeft.converters.hf:make_plan",
            converter="edgeft.converters.hf:convert",
            runtime="edgeft.runtimes.reference:ReferenceRuntime",
            suffix="",
            quants=("f32", "f16", "bf16"),
            default=("f32",),
            engines=("torch", "transformers"),
            reference="edgeft.runtimes.reference:ReferenceRuntime",
        ),
        Format(
            name="gptq",
            plan="edgeft.converters.gptq:make_plan",
            converter="edgeft.converters.gptq:convert",
            runtime="edgeft.runtimes.gptq:GPTQRuntime",
            suffix="",
            quants=("8bit", "4bit", "3bit", "2bit"),
            default=("4bit",),
            takes=("group_size", "symmetric"),
            solved=("8bit", "4bit", "3bit", "2bit"),
            nearest=("8bit", "4bit", "3bit"),
            tensors="edgeft.converters.gptq_tensors:file_tensors",
            digests="edgeft.converters.gptq_tensors:digests",
            prepare="edgeft.converters.repacked:repacked_gguf",
            reference="edgeft.runtimes.reference:ReferenceRuntime",
        ),
        Format(
            name="onnx",
            plan="edgeft.converters.onnx.convert:make_plan",
            converter="edgeft.converters.onnx.convert:convert",
            runtime="edgeft.runtimes.onnx:ONNXRuntime",
            suffix="",
            quants=("f32", "int8", "int4-mixed", "gptq-int4", "int4"),
            default=("int4",),
            takes=("group_size",),
            solved=("gptq-int4",),
            nearest=("int8", "int4-mixed", "int4"),
            tensors="edgeft.converters.onnx.file_tensors:file_tensors",
            digests="edgeft.converters.onnx.file_tensors:digests",
            engines=("onnxruntime", "onnxruntime-genai"),
            inspect="edgeft.report.describe:describe_onnx",
        ),
    )
}  # fmt: skip


def format_named(name: str) -> Format:
    """The row of a name, in any case. FormatError for an unknown one."""
    try:
        return FORMATS[name.lower()]
    except KeyError:
        raise FormatError(f"unknown format {name!r}", did_you_mean(name, FORMATS)) from None


def nearest_format(quant: str) -> Format | None:
    """The format of a quantization that a training can compute with; None for any other name."""
    return next((row for row in FORMATS.values() if quant in row.nearest), None)


def check_quants(rows: Sequence[Format], quants: tuple[str, ...]) -> list[tuple[Format, str]]:
    """(format, quantization) pairs to export, per format from the most to the least exact.

    A format gets those of `quants` that it has, or its default where it has none of them. FormatError
    for a quantization that none of the formats has.
    """
    names = {quant.lower() for quant in quants}
    known = [quant for row in rows for quant in row.quants]
    for quant in names - set(known):
        formats = " or ".join(row.name for row in rows)
        other = next((row.name for row in FORMATS.values() if quant in row.quants), None)
        hint = f"--format {other} has" if other else did_you_mean(quant, known)
        raise FormatError(f"format {formats} has no quantization {quant!r}", hint)
    pairs = []
    for row in rows:
        chosen = names & set(row.quants) or set(row.default)
        pairs += [(row, quant) for quant in row.quants if quant in chosen]
    return pairs


def format_of(path: Path) -> Format:
    """The format of an artifact on disk. InputError for a path that is none."""
    if path.suffix == ".gguf" and path.is_file():
        return FORMATS["gguf"]
    if (path / "genai_config.json").is_file():
        return FORMATS["onnx"]
    if (path / "config.json").is_file():
        return FORMATS["gptq" if _is_gptq(path) else "hf"]
    if not path.exists():
        raise InputError(f"no such artifact: {path}", "edgeft merge-export makes one")
    raise InputError(
        f"{path} is not a model that edgeft can run",
        "a .gguf file, or a folder with config.json and safetensors or model.onnx",
    )


def _is_gptq(folder: Path) -> bool:
    """Judged by config.json alone; `edgeft.weights.checkpoint.quantization` reads the whole of it."""
    try:
        config = json.loads(read_text(folder / "config.json"))
        quantized = config.get("quantization_config")
    except (ValueError, AttributeError, RecursionError, InputError):
        return False  # the runtime that opens it reports what is wrong
    if quantized is None:
        return (folder / "quantize_config.json").is_file()
    return isinstance(quantized, dict) and quantized.get("quant_method") == "gptq"


def load(entry: str) -> Any:
    """The object that an entry "module:name" of the table names, imported now."""
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(module), name)
