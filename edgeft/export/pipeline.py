"""Adapter -> proven artifacts: the whole of `edgeft merge-export` below the command line.

    export(ExportOptions(adapter=(Weighted(Path("adapter")),), out=Path("out"), quants=("f16",)))

For every artifact: merge and convert in one pass (`edgeft.export.choices` measured how, where that was left
open), check the landing proof, and hold the finished file to the tokenizer and the live model
(`edgeft.export.verify`). What fails a check never gets its name.
"""

from __future__ import annotations

import functools
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgeft import files, machine, models, store
from edgeft.adapter.config import adapter_manifest, read_adapter_config
from edgeft.adapter.read import Weighted
from edgeft.base.resolve import resolve
from edgeft.errors import FormatError, InputError
from edgeft.export import choices, own_chats
from edgeft.export.modelfile import modelfile
from edgeft.export.verify import Checks
from edgeft.files import read_json
from edgeft.formats import FORMATS, Format, check_quants, format_named, load
from edgeft.gptq.quantize import Calibration, footprint
from edgeft.merge.landing import Proof, to_json
from edgeft.merge.view import Merged, open_merged
from edgeft.progress import say
from edgeft.records import Artifact, Manifest
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.weights import gptq_layout, imatrix
from edgeft.weights.checkpoint import READABLE, Checkpoint

UNQUANTIZED = {"f32": 32, "f16": 16, "bf16": 16}
"""quantization -> bits of a weight"""


@dataclass(frozen=True)
class ExportOptions:
    out: Path
    """folder of the artifacts"""
    adapter: tuple[Weighted, ...] = ()
    """peft's format, summed by weight; none exports the base as it is"""
    base: str | None = None
    """as for `edgeft.base.resolve.resolve`; default: the adapter's own"""
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
    """chats or plain text for GPTQ and for `imatrix` auto; default: the chats of the training"""
    calibration_tokens: int = 32_768
    """of it that are used at most"""
    group_size: int | None = None
    """of GPTQ's own format and of ONNX: columns that share a scale, -1 for all; None: the format's"""
    symmetric: bool = True
    """of GPTQ's own format"""
    damp: float = 0.01
    """of GPTQ: share of the mean diagonal of the Hessian that is added to it"""
    offload: bool = False
    """GPTQ keeps its activations in a file"""
    tensor_types: tuple[tuple[str, str], ...] = ()
    """(regex, type) for tensors that shall not have what the quantization gives them"""
    live: bool = True
    """compare logits with the live adapter, where torch is installed"""
    threads: int = len(os.sched_getaffinity(0))
    overwrite: bool = False


def export(options: ExportOptions) -> list[Artifact]:
    """Make every artifact that is asked for; those that are complete already are kept."""
    rows = [format_named(name) for name in dict.fromkeys(map(str.lower, options.formats))]
    wanted = check_quants(rows, options.quants)
    if not wanted:
        raise FormatError("no format is asked for", "such as --format gguf")
    _check_files(options)
    base = resolve(options.base or _recorded_base(options.adapter))
    _check_base(base)
    view = open_merged(base, options.adapter, double_quant=options.double_quant)
    run = _Run(options, view, _parents(options, base))
    run.check(wanted)
    for note in view.notes:
        say(note)
    examples = run.chats.validation
    with Checks(options.adapter, examples, options.threads, options.live) as checks:
        return [run.make(row, quant, checks) for row, quant in wanted]


class _Run:
    """One export: what is decided once, for the first artifact that is not there yet."""

    def __init__(self, options: ExportOptions, view: Merged, parents: dict[str, str]) -> None:
        self.options = options
        self.view = view
        self.parents = parents
        self.chats = own_chats.own_chats(options.adapter, options.validation, options.calibration)
        self._why: dict[str, Any] = {}
        self._importance: imatrix.Imatrix | None = None

    def check(self, wanted: list[tuple[Format, str]]) -> None:
        """What can be refused before any work is done, for all artifacts."""
        options = self.options
        files.sweep(options.out)
        _check(options, wanted, self.view)
        todo = [(row, quant) for row, quant in wanted if not self._done(row, quant)]
        for row, quant in todo:
            target = self._target(row, quant)
            store.check_free(
                target, "artifact", self._frozen(row, quant), self.parents, options.overwrite
            )
            if row.name == "gguf" and not store.read_manifest(target):
                store.check_not_foreign(target.with_suffix(".Modelfile"), options.overwrite)
        auto = options.imatrix == "auto" and any("imatrix" in row.takes for row, _ in todo)
        solved = any(quant in row.solved for row, quant in todo)
        if (auto or solved) and not self.chats.calibrates:
            what = "GPTQ" if solved else "an importance matrix"
            raise InputError(
                f"nothing to calibrate {what} on: {self.chats.why_no_training}",
                "--calibration FILE with chats or text",
            )
        if auto:
            store.check_not_foreign(options.out / "imatrix.gguf", options.overwrite)
        elif options.imatrix and todo:
            self._importance = imatrix.read(Path(options.imatrix))
        for row, quant in todo:
            if row.check:
                measured = {"measured": auto} if "imatrix" in row.takes else {}
                load(row.check)(self.view, quant, **self._own(row), **measured)
            if quant in row.solved:
                disk, memory = footprint(self.view, self._sequences, options.offload)
                spare = "fewer --calibration-tokens" + (", --offload" * (not options.offload))
                machine.preflight(options.out, f"GPTQ for {quant}", disk, memory, spare)

    def _own(self, row: Format) -> dict[str, Any]:
        """What the format's converter takes beside what all take."""
        given = {name: getattr(self.options, name) for name in row.takes}
        return given | ({"imatrix": self._importance} if "imatrix" in given else {})

    def _target(self, row: Format, quant: str) -> Path:
        return self.options.out / (f"{quant}{row.suffix}" if row.suffix else f"{row.name}-{quant}")

    def _done(self, row: Format, quant: str) -> Manifest | None:
        frozen = self._frozen(row, quant)
        return store.find_complete(self._target(row, quant), "artifact", frozen, self.parents)

    def make(self, row: Format, quant: str, checks: Checks) -> Artifact:
        options = self.options
        target, frozen = self._target(row, quant), self._frozen(row, quant)
        done = self._done(row, quant)
        if done:
            files.remove(_blocks_of(target))  # a run may have been killed after its last step
            say(f"{target} is complete, nothing to do")
            self._write_modelfile(row, target, done)
            return Artifact(target, row.name, quant, done)
        bits = UNQUANTIZED.get(quant, 9)
        machine.preflight(options.out, f"exporting {quant}", self.view.bytes_as(bits), 300_000_000)
        self._decide()
        started = time.perf_counter()
        with store.writing(
            target, kind="artifact", options=frozen, parents=self.parents,
            overwrite=options.overwrite,
        ) as work:  # fmt: skip
            merged = self.view.on(self.view.merge_base)
            own = self._own(row)
            if quant in row.solved:
                own["calibration"], work.facts["calibration"] = self._calibration(target)
            try:
                made = load(row.converter)(merged, work.path, quant, options.threads, **own)
            except KeyboardInterrupt:
                if _blocks_of(target).is_dir():
                    say("stopped: the same command goes on with the block where it was")
                raise
            work.facts |= made
            proof = merged.proof()
            converted = time.perf_counter() - started
            work.facts |= {
                "seconds": round(converted, 2), "proof": to_json(proof), "merge_base": self._why,
                "parity": checks.run(row, quant, work.path, merged),
            }  # fmt: skip
        files.remove(_blocks_of(target))
        manifest = store.read_manifest(target)
        assert manifest is not None
        self._write_modelfile(row, target, manifest)
        _tell(target, quant, manifest, proof, converted, time.perf_counter() - started)
        return Artifact(target, row.name, quant, manifest)

    def _frozen(self, row: Format, quant: str) -> dict[str, Any]:
        """What makes this artifact another one than its neighbour."""
        options = self.options
        frozen: dict[str, Any] = {
            "format": row.name, "quant": quant, "merge_base": options.merge_base,
            "validation": options.validation.name if options.validation else None,
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
            frozen["damp"], frozen["calibration_tokens"] = options.damp, options.calibration_tokens
            frozen["calibration"] = options.calibration.name if options.calibration else "auto"
        frozen |= {name: getattr(options, name) for name in row.takes
                   if name in ("group_size", "symmetric")}  # fmt: skip
        return frozen

    @functools.cached_property
    def _sequences(self) -> list[list[int]]:
        """What GPTQ learns from."""
        return own_chats.sample(self.view, self.chats, self.options.calibration_tokens)

    def _calibration(self, target: Path) -> tuple[Calibration, dict[str, Any]]:
        """What GPTQ learns from, and the facts about it."""
        options, sequences = self.options, self._sequences
        found = Calibration(sequences, _blocks_of(target), options.damp, options.offload)
        tokens = sum(map(len, sequences))
        facts = {"of": self.chats.name, "sequences": len(sequences), "tokens": tokens,
                 "sha256": found.fingerprint()}  # fmt: skip
        return found, facts

    def _write_modelfile(self, row: Format, target: Path, manifest: Manifest) -> None:
        file = target.with_suffix(".Modelfile")
        if row.name == "gguf" and not file.is_file():
            chat = ChatTemplate.from_folder(self.view.tokenizer)
            adds_bos = manifest.facts["parity"].get("adds_bos", False)
            files.write_text(file, modelfile(chat, target.name, adds_bos))

    def _decide(self) -> None:
        """Once, for the first artifact that is not there yet: merge base and importance."""
        options = self.options
        if self._why:
            return
        if options.merge_base == "auto":
            chosen, self._why = choices.merge_base(
                self.view, options.adapter, self.chats, options.out, options.threads
            )
        else:
            chosen = options.merge_base
            self._why = {"chosen": chosen, "why": "asked for"}
        self.view = self.view.on(chosen)
        if options.imatrix == "auto":
            path = choices.own_imatrix(
                self.view, self.chats, options.calibration_tokens, options.out, options.threads,
                self.parents,
            )  # fmt: skip
            self._importance = imatrix.read(path)


def _blocks_of(target: Path) -> Path:
    """Where GPTQ keeps what is done of an artifact until it is complete."""
    return target.with_name(f".{target.name}.blocks")


def _check_files(options: ExportOptions) -> None:
    """That what is read is there, and that the results have a place."""
    home = options.out.absolute()
    while not home.exists():
        home = home.parent
    if not home.is_dir():
        raise InputError(f"{home} is a file, not a folder", "choose another --out")
    if not os.access(home, os.W_OK):
        raise InputError(f"{home} cannot be written to", "choose another --out")
    for path, name in (
        (options.validation, "--validation"),
        (options.calibration, "--calibration"),
        (Path(options.imatrix) if options.imatrix not in (None, "auto") else None, "--imatrix"),
    ):
        if path and not path.is_file():
            raise InputError(f"no such file: {path}", f"check {name}")


def _check_base(base: Path) -> None:
    """A family that is known, and weights that can be read."""
    config = read_json(base / "config.json")
    card = models.card_for(config)
    for name, info in Checkpoint(base).tensors.items():
        if card.ignores(name):
            continue
        stored = config.get("quantization_config")
        if info.dtype not in READABLE and isinstance(stored, dict):
            gptq_layout.settings(stored, base)
        info.check_float(name)


def _check(options: ExportOptions, wanted: list[tuple[Format, str]], view: Merged) -> None:
    rows = [row for row, _ in wanted]
    for row in rows:
        if row.name not in view.card.formats:
            raise FormatError(
                f"the {view.card.family} family cannot be exported as {row.name}",
                f"it can as {', '.join(view.card.formats)}",
            )
    solves = any(quant in row.solved for row, quant in wanted)
    for option, given, name in (
        ("--imatrix", options.imatrix, "imatrix"),
        ("--tensor-type", options.tensor_types, "tensor_types"),
        ("--group-size", options.group_size, "group_size"),
        ("--asymmetric", not options.symmetric, "symmetric"),
    ):
        if given and all(name not in row.takes for row in rows):
            others = " and ".join(row.name for row in FORMATS.values() if name in row.takes)
            raise FormatError(
                f"{option} is not for format {rows[0].name}", f"--format {others} takes it"
            )
    if options.offload and not solves:
        raise FormatError("--offload is for GPTQ", "such as --quant gptq-q4_0")
    calibrates = options.imatrix == "auto" or solves
    if options.calibration and not calibrates:
        raise InputError(
            "--calibration is for --imatrix auto and for GPTQ",
            "add --imatrix auto or --quant gptq-q4_0, or leave it out",
        )
    if options.tensor_types and all(quant in UNQUANTIZED for _, quant in wanted):
        raise FormatError(
            f"--tensor-type changes nothing in {wanted[0][1]}", "such as --quant q8_0 beside it"
        )
    chat = ChatTemplate.from_folder(view.tokenizer)
    for adapter in options.adapter:
        learned = adapter_manifest(adapter.path).get("facts", {}).get("chat")
        if learned:
            what = f"{adapter.path} was trained with"
            chat.check_is(learned, what, "give the base with the template that it was trained with")


def _parents(options: ExportOptions, base: Path) -> dict[str, str]:
    parents = {"base": store.identity(base)}
    for number, adapter in enumerate(options.adapter, 1):
        role = "adapter" if number == 1 else f"adapter {number}"
        parents[role] = store.identity(adapter.path)
    for role, path in (("validation", options.validation), ("calibration", options.calibration)):
        if path:
            parents[role] = files.sha256(path)
    if options.imatrix and options.imatrix != "auto":
        parents["imatrix"] = files.sha256(Path(options.imatrix))
    return parents


def _tell(
    target: Path, quant: str, manifest: Manifest, proof: Proof, converted: float, seconds: float
) -> None:
    size = sum(record.size for record in manifest.files.values())
    say(
        f"{target}  {files.format_bytes(size)} in {seconds:.1f} s, {converted:.1f} s of it to write"
    )
    say(f"  {proof}")
    live = manifest.facts["parity"]["live"]
    if isinstance(live, dict):
        found = f", {live['beta']:.3f} of the adapter's change" if live["beta"] else ""
        say(
            f"  as the live model on {live['prompts']} prompts: KL {live['kl']:.2g}, same first "
            f"choice {live['same_top']:.1%}{found}"
        )
    if rounded := manifest.facts.get("rounded"):
        say(
            f"  {rounded} of {manifest.facts['quantized']} layers saw too few tokens for GPTQ and "
            "were rounded: more --calibration-tokens, or other chats"
        )
    if without := manifest.facts.get("without_importance"):
        say(f"  the importance matrix has nothing for {without} of the quantized tensors")
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
