"""Adapter -> proven artifacts: the whole of `edgeft merge-export` below the command line.

    export(ExportOptions(adapter=(Weighted(Path("adapter")),), out=Path("out"), quants=("f16",)))

For every artifact: merge and convert in one pass (`edgeft.decide` measured how, where that was left
open), check the landing proof, and hold the finished file to the tokenizer and the live model
(`edgeft.checks`). What fails a check never gets its name.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgeft import decide, imatrix, stage
from edgeft.adapter import Weighted
from edgeft.adapter_config import read_adapter_config
from edgeft.base import resolve
from edgeft.checks import Checks
from edgeft.errors import FormatError, InputError
from edgeft.formats import Format, check_quants, format_named, load
from edgeft.merge import Merged, Proof, adapter_manifest, open_merged, to_json
from edgeft.modelfile import modelfile
from edgeft.progress import say
from edgeft.records import Artifact, Manifest
from edgeft.template import ChatTemplate


@dataclass(frozen=True)
class ExportOptions:
    out: Path
    """folder of the artifacts"""
    adapter: tuple[Weighted, ...] = ()
    """peft's format, summed by weight; none exports the base as it is"""
    base: str | None = None
    """as for `edgeft.base.resolve`; default: the adapter's own"""
    formats: tuple[str, ...] = ("gguf",)
    quants: tuple[str, ...] = ()
    merge_base: Literal["auto", "w16", "nf4", "fp4"] = "auto"
    """auto: w16 or nf4, the one with the smaller loss on the validation split"""
    double_quant: bool = True
    """whether the 4-bit base of the training was quantized twice (bitsandbytes' use_double_quant)"""
    validation: Path | None = None
    """for auto; default: the split that training held out"""
    imatrix: str | None = None
    """a file in llama.cpp's format, or auto: collected on the chats that were learned"""
    calibration: Path | None = None
    """chats for `imatrix` auto; default: those of the training"""
    tensor_types: tuple[tuple[str, str], ...] = ()
    """(regex, type) for tensors that shall not have what the quantization gives them"""
    live: bool = True
    """compare logits with the live adapter, where torch is installed"""
    threads: int = len(os.sched_getaffinity(0))
    overwrite: bool = False


def export(options: ExportOptions) -> list[Artifact]:
    """Make every artifact that is asked for; those that are complete already are kept."""
    wanted = [
        (row, quant)
        for row in map(format_named, options.formats)
        for quant in check_quants(row, options.quants)
    ]
    base = resolve(options.base or _recorded_base(options.adapter))
    view = open_merged(base, options.adapter, double_quant=options.double_quant)
    for note in view.notes:
        say(note)
    _check(options, wanted, view)
    run = _Run(options, view, _parents(options, base))
    examples = run.chats.validation
    with Checks(options.adapter, examples, options.threads, options.live) as checks:
        return [run.make(row, quant, checks) for row, quant in wanted]


class _Run:
    """One export: what is decided once, for the first artifact that is not there yet."""

    def __init__(self, options: ExportOptions, view: Merged, parents: dict[str, str]) -> None:
        self.options = options
        self.view = view
        self.parents = parents
        self.chats = decide.own_chats(options.adapter, options.validation, options.calibration)
        self._why: dict[str, Any] = {}
        self._importance: imatrix.Imatrix | None = None

    def make(self, row: Format, quant: str, checks: Checks) -> Artifact:
        options = self.options
        target = options.out / (f"{quant}{row.suffix}" if row.suffix else f"{row.name}-{quant}")
        frozen = self._frozen(row, quant)
        done = stage.finished(target, "artifact", frozen, self.parents)
        if done:
            say(f"{target} is complete, nothing to do")
            self._write_modelfile(row, target, done)
            return Artifact(target, row.name, quant, done)
        bits = {"f32": 32, "f16": 16, "bf16": 16}.get(quant, 9)
        stage.preflight(options.out, f"exporting {quant}", self.view.bytes_as(bits), 300_000_000)
        self._decide()
        started = time.perf_counter()
        with stage.writing(
            target, kind="artifact", options=frozen, parents=self.parents,
            overwrite=options.overwrite,
        ) as work:  # fmt: skip
            merged = self.view.on(self.view.merge_base)
            own: dict[str, Any] = {}
            if row.calibrated:
                own = {"tensor_types": options.tensor_types, "imatrix": self._importance}
            work.facts |= load(row.converter)(merged, work.path, quant, options.threads, **own)
            proof = merged.proof()
            converted = time.perf_counter() - started
            work.facts |= {
                "seconds": round(converted, 2), "proof": to_json(proof), "merge_base": self._why,
                "parity": checks.run(row, quant, work.path, merged),
            }  # fmt: skip
        manifest = stage.read_manifest(target)
        assert manifest is not None
        self._write_modelfile(row, target, manifest)
        _tell(target, quant, manifest, proof, converted, time.perf_counter() - started)
        return Artifact(target, row.name, quant, manifest)

    def _frozen(self, row: Format, quant: str) -> dict[str, Any]:
        """What makes this artifact another one than its neighbour."""
        options = self.options
        frozen: dict[str, Any] = {
            "format": row.name, "quant": quant, "merge_base": options.merge_base,
            "validation": str(options.validation) if options.validation else None,
        }  # fmt: skip
        weights = [adapter.weight for adapter in options.adapter]
        if weights not in ([], [1.0]):
            frozen["weights"] = weights
        if row.calibrated:
            if options.imatrix:
                frozen["imatrix"] = options.imatrix
            if options.tensor_types:
                frozen["tensor_types"] = [list(pair) for pair in options.tensor_types]
        return frozen

    def _write_modelfile(self, row: Format, target: Path, manifest: Manifest) -> None:
        file = target.with_suffix(".Modelfile")
        if row.name == "gguf" and not file.is_file():
            chat = ChatTemplate.from_folder(self.view.tokenizer)
            adds_bos = manifest.facts["parity"].get("adds_bos", False)
            stage.write_text(file, modelfile(chat, target.name, adds_bos))

    def _decide(self) -> None:
        """Once, for the first artifact that is not there yet: merge base and importance."""
        options = self.options
        if self._why:
            return
        if options.merge_base == "auto":
            chosen, self._why = decide.merge_base(
                self.view, options.adapter, self.chats, options.out, options.threads
            )
        else:
            chosen = options.merge_base
            self._why = {"chosen": chosen, "why": "asked for"}
        self.view = self.view.on(chosen)
        if options.imatrix == "auto":
            path = decide.own_imatrix(
                self.view, self.chats, options.out, options.threads, self.parents,
                options.overwrite,
            )  # fmt: skip
            self._importance = imatrix.read(path)
        elif options.imatrix:
            self._importance = imatrix.read(Path(options.imatrix))


def _check(options: ExportOptions, wanted: list[tuple[Format, str]], view: Merged) -> None:
    """What can be refused before any work is done."""
    rows = [row for row, _ in wanted]
    for row in rows:
        if row.name not in view.card.formats:
            raise FormatError(
                f"the {view.card.family} family cannot be exported as {row.name}",
                f"it can as {', '.join(view.card.formats)}",
            )
    if (options.imatrix or options.tensor_types) and not any(row.calibrated for row in rows):
        asked = "--imatrix" if options.imatrix else "--tensor-type"
        raise FormatError(f"{asked} is not for format {rows[0].name}", "--format gguf takes it")
    for path, name in (
        (options.validation, "--validation"),
        (options.calibration, "--calibration"),
        (Path(options.imatrix) if options.imatrix not in (None, "auto") else None, "--imatrix"),
    ):
        if path and not path.is_file():
            raise InputError(f"no such file: {path}", f"check {name}")
    for row, quant in wanted:
        if row.plan:
            load(row.plan)(view, quant, options.tensor_types, options.imatrix is not None)
    chat = ChatTemplate.from_folder(view.tokenizer)
    for adapter in options.adapter:
        learned = adapter_manifest(adapter.path).get("facts", {}).get("chat")
        if learned:
            chat.check_is(learned, f"{adapter.path} was trained with")


def _parents(options: ExportOptions, base: Path) -> dict[str, str]:
    parents = {"base": stage.identity(base)}
    for number, adapter in enumerate(options.adapter, 1):
        role = "adapter" if number == 1 else f"adapter {number}"
        parents[role] = stage.identity(adapter.path)
    for role, path in (("validation", options.validation), ("calibration", options.calibration)):
        if path:
            parents[role] = stage.sha256(path)
    if options.imatrix and options.imatrix != "auto":
        parents["imatrix"] = stage.sha256(Path(options.imatrix))
    return parents


def _tell(
    target: Path, quant: str, manifest: Manifest, proof: Proof, converted: float, seconds: float
) -> None:
    size = sum(record.size for record in manifest.files.values())
    say(f"{target}  {stage.human(size)} in {seconds:.1f} s, {converted:.1f} s of it to write")
    say(f"  {proof}")
    live = manifest.facts["parity"]["live"]
    if isinstance(live, dict):
        found = f", {live['beta']:.3f} of the adapter's change" if live["beta"] else ""
        say(
            f"  as the live model on {live['prompts']} prompts: KL {live['kl']:.2g}, same first "
            f"choice {live['same_top']:.1%}{found}"
        )
    if not proof.faithful:
        say(f"  {quant} keeps {proof.beta:.0%} of the adapter's change: measure it, or go finer")


def _recorded_base(adapters: tuple[Weighted, ...]) -> str:
    if not adapters:
        raise InputError("nothing to export", "--adapter, --base or both")
    adapter = adapters[0].path
    config = read_adapter_config(adapter)
    recorded = adapter_manifest(adapter).get("options", {}).get("base")
    recorded = recorded or config.get("base_model_name_or_path")
    if not recorded:
        raise InputError(f"{adapter} does not say which base it was trained on", "--base")
    return str(recorded)
