"""Adapter -> proven artifacts: the whole of `edgeft merge-export` below the command line.

    export(ExportOptions(adapter=(Weighted(Path("adapter")),), out=Path("out"), quants=("f16",)))

For every artifact: merge and convert in one pass, check the landing proof, open the finished file
in its own runtime, compare token ids and stops with the base's tokenizer and, for a 16- or 32-bit
file (f16, f32), the first greedy tokens with the merged float32 model. What fails a check never gets its name.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgeft import stage
from edgeft.adapter import Weighted
from edgeft.adapter_config import read_adapter_config
from edgeft.base import resolve
from edgeft.benchmarks import parity, quality
from edgeft.dataset import fingerprint, load_examples
from edgeft.errors import EdgeftError, FormatError, InputError, MissingExtra
from edgeft.formats import Format, check_quants, format_named, load
from edgeft.merge import MergeBase, Merged, adapter_manifest, open_merged, to_json
from edgeft.progress import say
from edgeft.records import Artifact, Example
from edgeft.runtimes.reference import ReferenceRuntime
from edgeft.train.sft import validation_examples

EXACT = ("f32", "f16")
"""quantizations whose first greedy tokens must be the float32 model's"""


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
    merge_base: Literal["auto", "w16", "nf4"] = "auto"
    """auto: the one with the smaller loss on the validation split"""
    validation: Path | None = None
    """for auto; default: the split that training held out"""
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
    view = open_merged(base, options.adapter)
    for note in view.notes:
        say(note)
    for row, _ in wanted:
        if row.name not in view.card.formats:
            raise EdgeftError(
                f"the {view.card.family} family cannot be exported as {row.name}",
                f"it can as {', '.join(view.card.formats)}",
            )
    parents = {"base": stage.identity(base)}
    for number, adapter in enumerate(options.adapter, 1):
        role = "adapter" if number == 1 else f"adapter {number}"
        parents[role] = stage.identity(adapter.path)
    weights = [adapter.weight for adapter in options.adapter]
    if options.validation:
        if not options.validation.is_file():
            raise InputError(f"no such data file: {options.validation}", "check --validation")
        parents["validation"] = stage.sha256(options.validation)
    decided: tuple[MergeBase, dict[str, Any]] | None = None
    artifacts = []
    for row, quant in wanted:
        target = _target(options.out, row, quant)
        frozen: dict[str, Any] = {"format": row.name, "quant": quant, "merge_base": options.merge_base,
                  "validation": str(options.validation) if options.validation else None}  # fmt: skip
        if weights not in ([], [1.0]):
            frozen["weights"] = weights
        done = stage.finished(target, "artifact", frozen, parents)
        if done:
            say(f"{target} is complete, nothing to do")
            artifacts.append(Artifact(target, row.name, quant, done))
            continue
        stage.preflight(options.out, f"exporting {quant}", *_needs(view, quant))
        decided = decided or choose_merge_base(base, options)
        started = time.perf_counter()
        with stage.writing(
            target, kind="artifact", options=frozen, parents=parents, overwrite=options.overwrite
        ) as work:
            merged = open_merged(base, options.adapter, decided[0])
            work.facts |= load(row.converter)(merged, work.path, quant, options.threads)
            proof = merged.proof()
            work.facts |= {"proof": to_json(proof), "merge_base": decided[1]}
            work.facts["parity"] = _parity(row, quant, work.path, merged, options.threads)
        seconds = time.perf_counter() - started
        manifest = stage.read_manifest(target)
        assert manifest is not None
        size = sum(record.size for record in manifest.files.values())
        say(f"{target}  {stage.human(size)} in {seconds:.1f} s")
        say(f"  {proof}")
        if not proof.faithful:
            say(
                f"  {quant} keeps {proof.beta:.0%} of the adapter's change: measure it, or go finer"
            )
        artifacts.append(Artifact(target, row.name, quant, manifest))
    return artifacts


def choose_merge_base(base: Path, options: ExportOptions) -> tuple[MergeBase, dict[str, Any]]:
    """Which weights the delta is added to, and why: (choice, facts for the manifest).

    The usual advice is the 16-bit base; a QLoRA adapter was trained on NF4 values, and which of the
    two keeps more of it depends on the run, so both are measured on the validation split.
    """
    if options.merge_base != "auto":
        return options.merge_base, {"chosen": options.merge_base, "why": "asked for"}
    if not options.adapter:
        return "w16", {"chosen": "w16", "why": "no adapter"}
    trained_on_nf4 = all(
        "nf4" in adapter_manifest(adapter.path).get("facts", {}) for adapter in options.adapter
    )
    examples, problem = _validation(options)
    if not examples:
        choice: MergeBase = "nf4" if trained_on_nf4 else "w16"
        say(f"merge base {choice}, not measured: {problem} (--validation FILE measures it)")
        return choice, {"chosen": choice, "why": f"not measured: {problem}"}
    losses: dict[MergeBase, float] = {}
    gguf = format_named("gguf")
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.out, prefix=".merge-base.partial-") as folder:
        for candidate in ("w16", "nf4"):
            file = Path(folder) / f"{candidate}.gguf"
            merged = open_merged(base, options.adapter, candidate)
            load(gguf.converter)(merged, file, "f16", options.threads)
            with load(gguf.runtime)(file, threads=options.threads) as model:
                losses[candidate] = round(quality.answer_nll(model, examples), 5)
            file.unlink()
    choice = min(losses, key=lambda name: losses[name])
    say(
        f"merge base {choice}: validation loss w16 {losses['w16']:.4f}, nf4 {losses['nf4']:.4f} "
        f"on {len(examples)} examples"
    )
    return choice, {"chosen": choice, "why": "smaller validation loss", "loss": losses,
                    "examples": len(examples)}  # fmt: skip


def _validation(options: ExportOptions) -> tuple[list[Example], str]:
    """The examples to choose on, or none and the reason."""
    if options.validation:
        return load_examples(options.validation), ""
    if len(options.adapter) > 1:
        return [], "several adapters"
    recorded = adapter_manifest(options.adapter[0].path)
    if not recorded:
        return [], "the adapter has no manifest"
    if not recorded["facts"].get("validation_items"):
        return [], "training held out no validation split"
    try:
        examples = validation_examples(recorded["options"])
    except EdgeftError as error:
        return [], str(error)
    if fingerprint(examples) != recorded["facts"]["validation_items"]:
        return [], "the training data changed since"
    return examples, ""


def _parity(row: Format, quant: str, path: Path, merged: Merged, threads: int) -> dict[str, Any]:
    with load(row.runtime)(path, threads=threads) as model:
        facts = parity.check_tokens(model, merged.tokenizer)
        if quant not in EXACT or row.name == "hf":
            return facts
        if not _float32_fits(merged):
            say("greedy tokens not compared: the float32 model does not fit into memory")
            return facts | {"greedy": "not compared: memory"}
        weights = ((name, merged.tensor(name)) for name in merged.shapes)
        try:
            reference = ReferenceRuntime(
                merged.base, threads, weights=weights,
                config=merged.config, tokenizer=merged.tokenizer,
            )  # fmt: skip
        except (MissingExtra, FormatError) as missing:
            say(f"greedy tokens not compared with the float32 model: {missing}")
            return facts | {"greedy": f"not compared: {missing.message}"}
        with reference:
            return facts | {"greedy": parity.check_greedy(model, reference)}


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


def _target(out: Path, row: Format, quant: str) -> Path:
    return out / (f"{quant}{row.suffix}" if row.suffix else f"{row.name}-{quant}")


def _needs(view: Merged, quant: str) -> tuple[int, int]:
    """(disk, memory) in bytes, from above: the file; a few copies of the largest tensor."""
    bits = {"f32": 32, "f16": 16, "bf16": 16}.get(quant, 9)
    sizes = [math.prod(shape) for shape in view.shapes.values()]
    return sum(sizes) * bits // 8 + 16_000_000, 6 * 4 * max(sizes) + 100_000_000


def _float32_fits(view: Merged) -> bool:
    """Room for the float32 model beside the artifact."""
    sizes = sum(math.prod(shape) for shape in view.shapes.values())
    return stage.available_memory() > 6 * sizes
