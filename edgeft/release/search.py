"""An adapter and a budget -> the smallest artifact that fits the budget and passes the gate.

    options = SearchOptions(ExportOptions(adapter=…, out=Path("out")), max_size=200_000_000)
    release = run_search(options, EvalOptions("smart_home"))
    release.ship                                   # "q4_k_m.gguf"

Every candidate is exported, then its size, speed and memory are measured, one after the other; those
over the budget are dropped. The rest goes to the gate (`edgeft.release.gate`), from the largest to the
smallest file, up to the first that does not pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from edgeft.adapter.folder import is_reward_model
from edgeft.benchmarks.options import EvalOptions
from edgeft.benchmarks.performance import latency
from edgeft.benchmarks.quality import evaluate
from edgeft.benchmarks.quality.workers import open_workers
from edgeft.errors import (
    AdapterError,
    FormatError,
    InputError,
    MissingExtra,
    ProofError,
    ResourceError,
)
from edgeft.export.options import ExportOptions
from edgeft.export.pipeline import base_of, data_of, export
from edgeft.export.ship import ship_target
from edgeft.files import format_bytes
from edgeft.formats import FORMATS, GPTQ_PREFIX, check_quants, format_named
from edgeft.progress import say
from edgeft.records import Artifact, Memory, Release, Speed
from edgeft.release.gate import run_gate
from edgeft.release.options import GateOptions, SearchOptions

BASELINE = "f16"
"""GGUF type that the candidates are compared with"""
LINEUP = {
    "gguf": ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "gptq-q4_0", "iq4_xs", "gptq-q3_k_m", "gptq-q2_k"),
    "onnx": ("int8", "int4-mixed", "int4"),
    "gptq": ("8bit", "4bit", "3bit"),
}
"""quantizations of each format that are tried if the user names none"""
UNCALIBRATED = {quant: quant.removeprefix(GPTQ_PREFIX) for quant in FORMATS["gguf"].solved}
"""quantization of a lineup -> what stands in for it where there are no calibration chats"""


def run_search(
    options: SearchOptions, eval_options: EvalOptions, commands: Sequence[str] = ()
) -> Release:
    """Export, drop what is over the budget, gate the rest; ResourceError if nothing fits."""
    if any(is_reward_model(adapter.path) for adapter in options.export.adapter):
        raise AdapterError(
            "a reward model answers no items", "edgeft merge-export, then edgeft score"
        )
    evaluate.load_items(eval_options)  # fails here if it fails, before the long work
    _check_formats(options.export, options.max_size)
    plain = dataclasses.replace(options.export, formats=("gguf",), quants=(BASELINE,))
    baseline = export(plain)[0].path
    candidates = [
        path for path in _export_candidates(options.export, options.max_size) if path != baseline
    ]
    if not candidates:
        raise InputError(f"{BASELINE} is what the others are compared with", "another --quant")
    timed, notes = _within_budget(options, candidates, eval_options.threads)
    if not timed:
        raise ResourceError("nothing fits the budget", "; ".join(notes))
    fitting = tuple(timed)
    timed[baseline] = latency.measure(baseline, eval_options.threads)
    gate = GateOptions(fitting, baseline, margin=options.margin, early_stop=options.early_stop)
    jobs = len(fitting) if options.ray and options.jobs == 1 else options.jobs
    with open_workers(jobs, options.ray) as prefetch:
        release = run_gate(gate, eval_options, commands, timed, prefetch)
    return dataclasses.replace(release, notes=(*notes, *release.notes))


def _check_formats(options: ExportOptions, max_size: int | None) -> None:
    rows = [format_named(name) for name in options.format_names]
    if unknown := [row.name for row in rows if row.name not in LINEUP]:
        problem = f"{unknown[0]} is nothing to choose from"
        raise FormatError(problem, f"--format {', '.join(LINEUP)}")
    named = check_quants(rows, options.quants) if options.quants else []
    if not max_size and any(quant == row.sized for row, quant in named):
        raise FormatError("--quant auto needs --max-size", "such as --max-size 80M")


def _export_candidates(options: ExportOptions, max_size: int | None = None) -> list[Path]:
    """`max_size`: of the budget, which --quant auto fits."""
    rows = [format_named(name) for name in options.format_names]
    named = check_quants(rows, options.quants) if options.quants else []
    paths = []
    for row in rows:
        chosen = tuple(quant for other, quant in named if other is row)
        of_format = dataclasses.replace(
            options, formats=(row.name,), quants=chosen,
            max_size=max_size if row.sized in chosen else None,
        )  # fmt: skip
        artifacts = export(of_format) if chosen else _export_lineup(of_format, row.name)
        paths += [artifact.path for artifact in artifacts]
    return paths


def _export_lineup(options: ExportOptions, name: str) -> list[Artifact]:
    """Export the lineup of a format; what cannot be calibrated is exported uncalibrated."""
    quants = lineup(name, options)
    plain = tuple(UNCALIBRATED.get(quant, quant) for quant in quants)
    try:
        return export(dataclasses.replace(options, quants=quants))
    except (ProofError, FormatError, MissingExtra) as error:
        if plain == quants:
            raise
        say(f"without calibration, because of: {error.message}")
        return export(dataclasses.replace(options, quants=plain))


def lineup(name: str, options: ExportOptions) -> tuple[str, ...]:
    """The quantizations of a format that are tried if the user names none."""
    quants = LINEUP[name]
    target = ship_target(options.adapter)
    if target and target.format and target.format.name == name and target.quant not in quants:
        better = f"{GPTQ_PREFIX}{target.quant}"
        others = tuple(quant for quant in quants if quant != better)
        place = quants.index(better) if better in quants else len(quants)
        quants = (*others[:place], target.quant, *others[place:])
    calibrated = [quant for quant in quants if quant in UNCALIBRATED]
    if not calibrated or data_of(options, base_of(options)).has_calibration_data:
        return quants
    for quant in calibrated:
        say(f"{UNCALIBRATED[quant]} in place of {quant}, which needs --calibration FILE")
    return tuple(UNCALIBRATED.get(quant, quant) for quant in quants)


def _within_budget(
    options: SearchOptions, candidates: Sequence[Path], threads: int | None
) -> tuple[dict[Path, tuple[Speed, Memory]], list[str]]:
    """(speed and memory of the candidates that fit, from large to small; a note for each other)."""
    timed: dict[Path, tuple[Speed, Memory]] = {}
    notes = []
    for path in sorted(candidates, key=evaluate.size_of, reverse=True):
        size = evaluate.size_of(path)
        if options.max_size and size > options.max_size:
            excess = f"{format_bytes(size)}, over --max-size {format_bytes(options.max_size)}"
        else:
            say(f"timing {path.name}")
            timed[path] = latency.measure(path, threads)
            excess = _excess(options, *timed[path])
        if excess:
            notes.append(f"{path.name} does not fit: {excess}")
            say(notes[-1])
            timed.pop(path, None)
    return timed, notes


def _excess(options: SearchOptions, speed: Speed, memory: Memory) -> str:
    """The part of the budget that is exceeded, "" if none is."""
    if options.max_memory and memory.peak > options.max_memory:
        return f"{format_bytes(memory.peak)} at the peak, over --max-memory {format_bytes(options.max_memory)}"
    if options.min_tps and speed.decode_tps < options.min_tps:
        return f"{speed.decode_tps:.0f} tokens/s, below --min-tps {options.min_tps:g}"
    return ""
