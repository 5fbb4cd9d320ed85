"""Options, view and data -> ExportPlan: the artifacts, after all checks that need no converter.

plan = plan_export(options, view, data, parents)
[item.target for item in plan.items if not item.complete]       # files still to be written
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft import machine, store
from edgeft.adapter.config import adapter_manifest
from edgeft.adapter.folder import adapter_home
from edgeft.converters.options import ConvertOptions
from edgeft.errors import FormatError, InputError, StaleError
from edgeft.export.fine_tune_data import FineTuneData, calibration_ids
from edgeft.export.options import ExportOptions
from edgeft.export.ship import rounds_as_trained
from edgeft.formats import FORMATS, Format, check_quants, format_named
from edgeft.gptq.quantize import footprint, linears
from edgeft.merge.view import Merged
from edgeft.records import Manifest
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.weights import imatrix

MIN_CALIBRATION_TOKENS = 8192
UNQUANTIZED_BITS = {"f32": 32, "f16": 16, "bf16": 16}
"""quantization -> bits per weight"""


@dataclass(frozen=True)
class Item:
    """One requested artifact."""

    format: Format
    quant: str
    target: Path
    """its file or folder"""
    manifest_options: dict[str, Any]
    """options in its manifest; artifacts with different options differ"""
    complete: Manifest | None
    """its manifest where it is finished, else None"""
    uses_gptq: bool
    """whether GPTQ quantizes its weights"""

    @property
    def sized(self) -> bool:
        """Whether its types are chosen for --max-size."""
        return self.quant == self.format.sized

    @property
    def gptq_blocks(self) -> Path:
        """Folder of GPTQ's finished blocks, deleted when the artifact is complete."""
        return self.target.with_name(f".{self.target.name}.blocks")

    @property
    def modelfile(self) -> Path | None:
        """Path of the Ollama Modelfile beside a GGUF."""
        return self.target.with_suffix(".Modelfile") if self.format.name == "gguf" else None


@dataclass(frozen=True)
class ExportPlan:
    """The inputs and the artifacts of an export."""

    options: ExportOptions
    view: Merged
    """with the stored weights of the base"""
    data: FineTuneData
    parents: dict[str, str]
    """role -> identity of an input"""
    items: list[Item]
    convert: ConvertOptions
    """for every item; `calibration` is set per item"""
    sequences: list[list[int]]
    """token ids of GPTQ's calibration sequences, [] without GPTQ"""
    calibration_tokens: int
    """of the option, or its default"""


def requested(options: ExportOptions) -> list[tuple[Format, str]]:
    """(format, quantization) of every requested artifact; FormatError for an unknown one."""
    formats = [format_named(name) for name in dict.fromkeys(map(str.lower, options.format_names))]
    return check_quants(formats, options.quants)


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
        (options.calibration_text, "--calibration-text"),
        (_imatrix_file(options), "--imatrix"),
    ):
        if path and not path.is_file():
            raise InputError(f"no such file: {path}", f"check {option}")


def parents_of(options: ExportOptions, base: Path) -> dict[str, str]:
    """Role -> identity of every input of the artifacts, for their manifests."""
    parents = {"base": store.identity(base)}
    for number, adapter in enumerate(options.adapter, 1):
        role = "adapter" if number == 1 else f"adapter {number}"
        parents[role] = store.identity(adapter_home(adapter.path))
    files = {
        "validation": options.validation_data,
        "calibration": options.calibration,
        "calibration_text": options.calibration_text,
        "imatrix": _imatrix_file(options),
    }
    return parents | {role: store.identity(path) for role, path in files.items() if path}


def default_calibration_tokens(view: Merged) -> int:
    """Enough for the Hessian of the widest layer to be no guess; more brought nothing (studies/LOG.md)."""
    columns = (view.shapes[name][1] for name in linears(view))
    return max(MIN_CALIBRATION_TOKENS, 2 * max(columns, default=0))


def plan_export(
    options: ExportOptions, view: Merged, data: FineTuneData, parents: dict[str, str]
) -> ExportPlan:
    """The plan of an export.

    FormatError or InputError for wrong options, StaleError where a target holds another artifact.
    """
    tokens = options.calibration_tokens or default_calibration_tokens(view)
    options = dataclasses.replace(options, calibration_tokens=tokens)
    pairs = requested(options)
    store.sweep(options.out)
    _check_options(options, pairs, view)
    items = [_item(options, fmt, quant, parents) for fmt, quant in pairs]
    _check_source(view, items)
    todo = [item for item in items if not item.complete]
    for item in todo:
        store.check_free(item.target, "artifact", item.manifest_options, parents, options.overwrite)
        if item.modelfile and not store.read_manifest(item.target):
            store.check_not_foreign(item.modelfile, options.overwrite)
    convert = _convert_options(options, todo, data)
    gptq = any(item.uses_gptq for item in todo)
    sequences = calibration_ids(view, data, tokens) if gptq else []
    return ExportPlan(options, view, data, parents, items, convert, sequences, tokens)


def _check_source(view: Merged, items: list[Item]) -> None:
    """StaleError where a target is the file that the adapter was trained from (--ship-from)."""
    trained = view.blocks()
    for item in items:
        if trained and item.target.resolve() == trained.kept.path.resolve():
            raise StaleError(
                f"{item.target} is the file that the adapter was trained from", "another --out"
            )


def _convert_options(
    options: ExportOptions, todo: list[Item], data: FineTuneData
) -> ConvertOptions:
    """Options of the converters.

    InputError without calibration data, StaleError for a foreign imatrix.gguf.
    """
    pending = options.imatrix == "auto" and any("imatrix" in item.format.takes for item in todo)
    gptq = any(item.uses_gptq for item in todo)
    sized = any(item.sized for item in todo)
    if (pending or gptq or sized) and not data.has_calibration_data:
        purpose = "GPTQ" if gptq else "an importance matrix" if pending else "--quant auto"
        raise InputError(
            f"nothing to calibrate {purpose} on: {data.why_no_training}",
            "--calibration FILE with chats or text",
        )
    if pending:
        store.check_not_foreign(options.out / "imatrix.gguf", options.overwrite)
    imatrix_file = _imatrix_file(options)
    return ConvertOptions(
        threads=options.threads,
        tensor_types=options.tensor_types,
        imatrix=imatrix.read(imatrix_file) if imatrix_file and todo else None,
        imatrix_pending=pending,
        group_size=options.group_size,
        symmetric=options.symmetric,
    )


def check_gptq_memory(plan: ExportPlan, item: Item) -> None:
    """ResourceError where memory is too small for GPTQ. Its disk is counted with that of the results."""
    if item.uses_gptq:
        offload = plan.options.offload_activations
        _, memory = gptq_footprint(plan)
        hint = "fewer --calibration-tokens" + (", --offload-activations" * (not offload))
        machine.preflight(plan.options.out, f"GPTQ for {item.quant}", memory=memory, spare=hint)


def gptq_footprint(plan: ExportPlan) -> tuple[int, int]:
    """Upper bounds (disk, memory) in bytes of GPTQ."""
    return footprint(plan.view, plan.sequences, plan.options.offload_activations)


def _item(options: ExportOptions, fmt: Format, quant: str, parents: dict[str, str]) -> Item:
    target = options.out / (f"{quant}{fmt.suffix}" if fmt.suffix else f"{fmt.name}-{quant}")
    manifest_options = _manifest_options(options, fmt, quant)
    complete = store.find_complete(target, "artifact", manifest_options, parents)
    return Item(fmt, quant, target, manifest_options, complete, _uses_gptq(options, fmt, quant))


def _uses_gptq(options: ExportOptions, fmt: Format, quant: str) -> bool:
    """Whether GPTQ quantizes the weights: not where an adapter was trained for the nearest codes."""
    return quant in fmt.solved and not rounds_as_trained(options, fmt, quant)


def _manifest_options(options: ExportOptions, fmt: Format, quant: str) -> dict[str, Any]:
    """The options that this artifact depends on, for its manifest."""
    recorded: dict[str, Any] = {
        "format": fmt.name, "quant": quant, "base_precision": options.base_precision,
        "validation": options.validation_data.name if options.validation_data else None,
    }  # fmt: skip
    weights = [adapter.weight for adapter in options.adapter]
    if weights not in ([], [1.0]):
        recorded["weights"] = weights
    if "imatrix" in fmt.takes:
        if options.imatrix:
            recorded["imatrix"] = Path(options.imatrix).name
        if options.imatrix == "auto":
            recorded |= _recorded_calibration(options)
        if options.tensor_types:
            recorded["tensor_types"] = [list(pair) for pair in options.tensor_types]
    if quant == fmt.sized:
        recorded["max_size"] = options.max_size
    solved = _uses_gptq(options, fmt, quant)
    if solved:
        recorded["damp"] = options.dampening_frac
    if solved or quant == fmt.sized:
        recorded |= _recorded_calibration(options)
        recorded["calibration"] = options.calibration.name if options.calibration else "auto"
    if "group_size" in fmt.takes:
        recorded["group_size"] = options.group_size
    if "symmetric" in fmt.takes:
        recorded["symmetric"] = options.symmetric
    return recorded


def _recorded_calibration(options: ExportOptions) -> dict[str, Any]:
    text = options.calibration_text
    beside = {"calibration_text": text.name} if text else {}
    return {"calibration_tokens": options.calibration_tokens, **beside}


def _check_options(options: ExportOptions, pairs: list[tuple[Format, str]], view: Merged) -> None:
    """FormatError or InputError for options without effect, or another chat template."""
    formats = [fmt for fmt, _ in pairs]
    if view.blocks() and options.base_precision != "auto":
        raise InputError(
            "an adapter that was trained from a GGUF file (--ship-from) is merged into that file",
            "leave --base-precision out",
        )
    for fmt in formats:
        if fmt.name not in view.card.formats:
            raise FormatError(
                f"the {view.card.family} family cannot be exported as {fmt.name}",
                f"it can as {', '.join(view.card.formats)}",
            )
    gptq = any(_uses_gptq(options, fmt, quant) for fmt, quant in pairs)
    for option, value, name in (
        ("--imatrix", options.imatrix, "imatrix"),
        ("--tensor-type", options.tensor_types, "tensor_types"),
        ("--group-size", options.group_size, "group_size"),
        ("--asymmetric", not options.symmetric, "symmetric"),
        ("--max-size", options.max_size, "max_size"),
    ):
        if value and all(name not in fmt.takes for fmt in formats):
            others = " and ".join(fmt.name for fmt in FORMATS.values() if name in fmt.takes)
            raise FormatError(
                f"{option} is not for format {formats[0].name}", f"--format {others} takes it"
            )
    if options.offload_activations and not gptq:
        raise FormatError("--offload-activations is for GPTQ", "such as --quant gptq-q4_0")
    sized = any(quant == fmt.sized for fmt, quant in pairs)
    if sized != bool(options.max_size):
        raise FormatError("--quant auto and --max-size go together", "--quant auto --max-size 80M")
    needs_calibration = options.imatrix == "auto" or gptq or sized
    for option, file in (
        ("--calibration", options.calibration),
        ("--calibration-text", options.calibration_text),
    ):
        if file and not needs_calibration:
            raise InputError(
                f"{option} is for --imatrix auto, --quant auto and GPTQ",
                "add --imatrix auto or --quant gptq-q4_0, or leave it out",
            )
    if options.tensor_types and all(quant in UNQUANTIZED_BITS for _, quant in pairs):
        raise FormatError(
            f"--tensor-type changes nothing in {pairs[0][1]}", "such as --quant q8_0 beside it"
        )
    chat = ChatTemplate.from_folder(view.tokenizer)
    for trained in (view.base, *(adapter.path for adapter in options.adapter)):
        trained_with = adapter_manifest(trained).get("facts", {}).get("chat")
        if trained_with:
            chat.check_matches(
                trained_with,
                f"{trained} was trained with",
                "give the base with the template that it was trained with",
            )


def _imatrix_file(options: ExportOptions) -> Path | None:
    return Path(options.imatrix) if options.imatrix not in (None, "auto") else None
