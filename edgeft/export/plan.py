"""Options + view -> the artifacts of an export, after all checks that need no converter.

plan = plan_export(options, view, data, parents)
[item.target for item in plan.items if not item.complete]       # what is to be written
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft import machine, store
from edgeft.adapter.config import adapter_manifest
from edgeft.converters.options import ConvertOptions
from edgeft.errors import FormatError, InputError
from edgeft.export.options import ExportOptions
from edgeft.export.own_chats import Chats, sample
from edgeft.files import sweep
from edgeft.formats import FORMATS, Format, check_quants, format_named
from edgeft.gptq.quantize import footprint
from edgeft.merge.view import Merged
from edgeft.records import Manifest
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.weights import imatrix

UNQUANTIZED_BITS = {"f32": 32, "f16": 16, "bf16": 16}
"""quantization -> bits of a weight"""


@dataclass(frozen=True)
class Item:
    """An artifact to be made."""

    format: Format
    quant: str
    target: Path
    """its file or folder"""
    frozen: dict[str, Any]
    """options in its manifest: what makes it another artifact than its neighbour"""
    complete: Manifest | None
    """its manifest where it is there already"""

    @property
    def solved(self) -> bool:
        """Whether GPTQ quantizes it."""
        return self.quant in self.format.solved

    @property
    def gptq_blocks(self) -> Path:
        """Where GPTQ keeps its finished blocks until the artifact is complete."""
        return self.target.with_name(f".{self.target.name}.blocks")

    @property
    def modelfile(self) -> Path | None:
        """Ollama's file beside a GGUF."""
        return self.target.with_suffix(".Modelfile") if self.format.name == "gguf" else None


@dataclass(frozen=True)
class ExportPlan:
    """All that an export fixes before its first artifact."""

    options: ExportOptions
    view: Merged
    """on the stored weights of the base"""
    data: Chats
    parents: dict[str, str]
    """role -> identity of what the artifacts are made from"""
    items: list[Item]
    convert: ConvertOptions
    """for every item; the calibration is added for each"""
    sequences: list[list[int]]
    """token ids that GPTQ is calibrated on, [] where nothing is solved"""


def requested(options: ExportOptions) -> list[tuple[Format, str]]:
    """(format, quantization) of every artifact that is asked for; FormatError for an unknown one."""
    formats = [format_named(name) for name in dict.fromkeys(map(str.lower, options.formats))]
    pairs = check_quants(formats, options.quants)
    if not pairs:
        raise FormatError("no format is asked for", "such as --format gguf")
    return pairs


def check_files(options: ExportOptions) -> None:
    """InputError where an input file is missing or the output folder cannot be written."""
    folder = options.out.absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise InputError(f"{folder} is a file, not a folder", "choose another --out")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder} cannot be written to", "choose another --out")
    for path, option in (
        (options.validation_data, "--validation-data"),
        (options.calibration, "--calibration"),
        (_imatrix_file(options), "--imatrix"),
    ):
        if path and not path.is_file():
            raise InputError(f"no such file: {path}", f"check {option}")


def parents_of(options: ExportOptions, base: Path) -> dict[str, str]:
    """Role -> identity of what the artifacts are made from, for their manifests."""
    parents = {"base": store.identity(base)}
    for number, adapter in enumerate(options.adapter, 1):
        role = "adapter" if number == 1 else f"adapter {number}"
        parents[role] = store.identity(adapter.path)
    files = {
        "validation": options.validation_data,
        "calibration": options.calibration,
        "imatrix": _imatrix_file(options),
    }
    return parents | {role: store.identity(path) for role, path in files.items() if path}


def plan_export(
    options: ExportOptions, view: Merged, data: Chats, parents: dict[str, str]
) -> ExportPlan:
    """The artifacts, and all that can be refused without their converters refused.

    FormatError, InputError, StaleError (something else lies at a target) or ResourceError.
    """
    pairs = requested(options)
    sweep(options.out)
    _check_options(options, pairs, view)
    items = [_item(options, row, quant, parents) for row, quant in pairs]
    todo = [item for item in items if not item.complete]
    for item in todo:
        store.check_free(item.target, "artifact", item.frozen, parents, options.overwrite)
        if item.modelfile and not store.read_manifest(item.target):
            store.check_not_foreign(item.modelfile, options.overwrite)
    convert = _convert_options(options, todo, data)
    solved = any(item.solved for item in todo)
    sequences = sample(view, data, options.calibration_tokens) if solved else []
    return ExportPlan(options, view, data, parents, items, convert, sequences)


def _convert_options(options: ExportOptions, todo: list[Item], data: Chats) -> ConvertOptions:
    """InputError where there is nothing to calibrate on, StaleError for a foreign imatrix.gguf."""
    pending = options.imatrix == "auto" and any("imatrix" in item.format.takes for item in todo)
    solved = any(item.solved for item in todo)
    if (pending or solved) and not data.calibrates:
        purpose = "GPTQ" if solved else "an importance matrix"
        raise InputError(
            f"nothing to calibrate {purpose} on: {data.why_no_training}",
            "--calibration FILE with chats or text",
        )
    if pending:
        store.check_not_foreign(options.out / "imatrix.gguf", options.overwrite)
    file = _imatrix_file(options)
    return ConvertOptions(
        threads=options.threads,
        tensor_types=options.tensor_types,
        imatrix=imatrix.read(file) if file and todo else None,
        imatrix_pending=pending,
        group_size=options.group_size,
        symmetric=options.symmetric,
    )


def check_gptq_resources(plan: ExportPlan, item: Item) -> None:
    """ResourceError where GPTQ would not fit on the disk or into memory."""
    if item.solved:
        offload = plan.options.offload_activations
        disk, memory = footprint(plan.view, plan.sequences, offload)
        spare = "fewer --calibration-tokens" + (", --offload-activations" * (not offload))
        machine.preflight(plan.options.out, f"GPTQ for {item.quant}", disk, memory, spare)


def _item(options: ExportOptions, row: Format, quant: str, parents: dict[str, str]) -> Item:
    target = options.out / (f"{quant}{row.suffix}" if row.suffix else f"{row.name}-{quant}")
    frozen = _frozen(options, row, quant)
    complete = store.find_complete(target, "artifact", frozen, parents)
    return Item(row, quant, target, frozen, complete)


def _frozen(options: ExportOptions, row: Format, quant: str) -> dict[str, Any]:
    """The options that make this artifact another one than its neighbour."""
    frozen: dict[str, Any] = {
        "format": row.name, "quant": quant, "base_precision": options.base_precision,
        "validation": options.validation_data.name if options.validation_data else None,
    }  # fmt: skip
    weights = [adapter.weight for adapter in options.adapter]
    if weights not in ([], [1.0]):
        frozen["weights"] = weights
    if "imatrix" in row.takes:
        if options.imatrix:
            frozen["imatrix"] = Path(options.imatrix).name
        if options.imatrix == "auto":
            frozen["calibration_tokens"] = options.calibration_tokens
        if options.tensor_types:
            frozen["tensor_types"] = [list(pair) for pair in options.tensor_types]
    if quant in row.solved:
        frozen["damp"], frozen["calibration_tokens"] = (
            options.dampening_frac,
            options.calibration_tokens,
        )
        frozen["calibration"] = options.calibration.name if options.calibration else "auto"
    if "group_size" in row.takes:
        frozen["group_size"] = options.group_size
    if "symmetric" in row.takes:
        frozen["symmetric"] = options.symmetric
    return frozen


def _check_options(options: ExportOptions, pairs: list[tuple[Format, str]], view: Merged) -> None:
    """FormatError or InputError for options that would change nothing, or another template."""
    rows = [row for row, _ in pairs]
    for row in rows:
        if row.name not in view.card.formats:
            raise FormatError(
                f"the {view.card.family} family cannot be exported as {row.name}",
                f"it can as {', '.join(view.card.formats)}",
            )
    solves = any(quant in row.solved for row, quant in pairs)
    for option, value, name in (
        ("--imatrix", options.imatrix, "imatrix"),
        ("--tensor-type", options.tensor_types, "tensor_types"),
        ("--group-size", options.group_size, "group_size"),
        ("--asymmetric", not options.symmetric, "symmetric"),
    ):
        if value and all(name not in row.takes for row in rows):
            others = " and ".join(row.name for row in FORMATS.values() if name in row.takes)
            raise FormatError(
                f"{option} is not for format {rows[0].name}", f"--format {others} takes it"
            )
    if options.offload_activations and not solves:
        raise FormatError("--offload-activations is for GPTQ", "such as --quant gptq-q4_0")
    calibrates = options.imatrix == "auto" or solves
    if options.calibration and not calibrates:
        raise InputError(
            "--calibration is for --imatrix auto and for GPTQ",
            "add --imatrix auto or --quant gptq-q4_0, or leave it out",
        )
    if options.tensor_types and all(quant in UNQUANTIZED_BITS for _, quant in pairs):
        raise FormatError(
            f"--tensor-type changes nothing in {pairs[0][1]}", "such as --quant q8_0 beside it"
        )
    chat = ChatTemplate.from_folder(view.tokenizer)
    for adapter in options.adapter:
        trained_with = adapter_manifest(adapter.path).get("facts", {}).get("chat")
        if trained_with:
            who = f"{adapter.path} was trained with"
            chat.check_matches(
                trained_with, who, "give the base with the template that it was trained with"
            )


def _imatrix_file(options: ExportOptions) -> Path | None:
    return Path(options.imatrix) if options.imatrix not in (None, "auto") else None
