"""The smallest artifact of a fine-tune that fits the machine and passes the gate.

    found = search(Search(ExportOptions(adapter=…, out=Path("out")), max_size=200_000_000), asking)
    found.ship                                     # "q4_k_m.gguf"

Every candidate is exported, then weighed and timed, one after the other; what does not fit the budget
is out. The rest goes to the gate (`edgeft.release.gate`) from the largest to the smallest file, up to the
first that does not pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeft.benchmarks.performance import latency
from edgeft.benchmarks.quality import evaluate
from edgeft.benchmarks.quality.evaluate import Asking
from edgeft.benchmarks.quality.workers import workers
from edgeft.errors import FormatError, InputError, ResourceError
from edgeft.export.options import ExportOptions
from edgeft.export.pipeline import export
from edgeft.files import format_bytes
from edgeft.formats import check_quants, format_named
from edgeft.progress import say
from edgeft.records import Memory, Release, Speed
from edgeft.release.gate import Gate, gate

BASELINE = "f16"
LINEUP = {
    "gguf": ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "iq4_xs", "q4_0", "q3_k_m", "q2_k"),
    "onnx": ("int8", "int4-mixed", "int4"),
    "gptq": ("8bit", "4bit", "3bit"),
}
"""what is tried of a format where no quantization is named"""


@dataclass(frozen=True)
class Search:
    export: ExportOptions
    """`quants` empty: `LINEUP`"""
    margin: float | None = None
    early_stop: bool = False
    max_size: int | None = None
    """bytes on disk"""
    max_memory: int | None = None
    """bytes at the peak, mapped weights included"""
    min_tps: float | None = None
    """tokens per second of decoding"""
    jobs: int = 1
    """candidates that are asked at a time; on Ray, 1 = all of them"""
    ray: str | None = None


def search(options: Search, asking: Asking, commands: Sequence[str] = ()) -> Release:
    """ResourceError where nothing fits the budget."""
    evaluate.load_items(asking)  # before the long work
    own = options.export
    rows = [format_named(name) for name in own.formats]
    if unknown := [row.name for row in rows if row.name not in LINEUP]:
        told = f"{unknown[0]} is nothing to choose from"
        raise FormatError(told, f"--format {', '.join(LINEUP)}")
    if own.quants:
        check_quants(rows, own.quants)
    plain = dataclasses.replace(own, formats=("gguf",), quants=(BASELINE,))
    baseline = export(plain)[0].path
    candidates = [path for path in _candidates(own) if path != baseline]
    if not candidates:
        raise InputError(f"{BASELINE} is what the others are compared with", "another --quant")
    measured: dict[Path, tuple[Speed, Memory]] = {}
    notes = []
    for path in sorted(candidates, key=evaluate.size_of, reverse=True):
        size = evaluate.size_of(path)
        if options.max_size and size > options.max_size:
            why = f"{format_bytes(size)}, over --max-size {format_bytes(options.max_size)}"
        else:
            say(f"timing {path.name}")
            measured[path] = latency.measure(path, asking.threads)
            why = _over(options, *measured[path])
        if why:
            notes.append(f"{path.name} does not fit: {why}")
            say(notes[-1])
            measured.pop(path, None)
    if not measured:
        raise ResourceError("nothing fits the budget", "; ".join(notes))
    fitting = tuple(measured)
    measured[baseline] = latency.measure(baseline, asking.threads)
    chosen = Gate(fitting, baseline, margin=options.margin, early_stop=options.early_stop)
    jobs = len(fitting) if options.ray and options.jobs == 1 else options.jobs
    with workers(jobs, options.ray) as together:
        found = gate(chosen, asking, commands, measured, together)
    return dataclasses.replace(found, notes=(*notes, *found.notes))


def _candidates(options: ExportOptions) -> list[Path]:
    found = []
    rows = [format_named(name) for name in options.formats]
    named = check_quants(rows, options.quants) if options.quants else []
    for row in rows:
        quants = tuple(quant for own, quant in named if own is row) or LINEUP[row.name]
        own_options = dataclasses.replace(options, formats=(row.name,), quants=quants)
        found += [artifact.path for artifact in export(own_options)]
    return found


def _over(options: Search, timing: Speed, memory: Memory) -> str:
    """What of the budget is exceeded, "" if nothing is."""
    if options.max_memory and memory.peak > options.max_memory:
        return f"{format_bytes(memory.peak)} at the peak, over --max-memory {format_bytes(options.max_memory)}"
    if options.min_tps and timing.decode_tps < options.min_tps:
        return f"{timing.decode_tps:.0f} tokens/s, below --min-tps {options.min_tps:g}"
    return ""
