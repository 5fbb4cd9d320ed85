"""One model -> its calibrated and plain 4-bit types side by side: size, fidelity, accuracy, speed.

    python -m edgeft.benchmarks.studies.four_bit --base smollm2-135m --adapter adapter --out rows \
        --text wiki.test.raw
    python -m edgeft.benchmarks.studies.four_bit --base smollm2-135m --dither 1 --out dithered \
        --text wiki.test.raw --calibration chats.jsonl

Every variant of `VARIANTS` whose type this version knows is exported into --out; complete ones are kept.
Then all are compared with the f16 file, token by token on the same ids
(`edgeft.benchmarks.fidelity.compare`): on the answers of the chats that training held out, and on plain
text. With an adapter the task is asked, too. Speeds are measured in processes of their own, in
alternating rounds. `--dither` moves the weights of an embedded base off the 4-bit grid on which they lie;
`--padded` pads a Llama base to widths that are multiples of 256, which the K-quants need.

The second table pairs variants on the same sequences and items: its errors are those of the differences.
Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgeft import files, machine, store
from edgeft.adapter.read import Weighted
from edgeft.base.resolve import resolve_base
from edgeft.benchmarks.fidelity import compare
from edgeft.benchmarks.fidelity.compare import Estimate, Fidelity, ScoredSequence
from edgeft.benchmarks.options import EvalOptions
from edgeft.benchmarks.performance import latency
from edgeft.benchmarks.quality import evaluate
from edgeft.benchmarks.statistics.noninferiority import Paired, mid_p
from edgeft.benchmarks.studies.padded_llama import pad
from edgeft.data.splits import fingerprint
from edgeft.errors import EdgeftError, InputError
from edgeft.export.fine_tune_data import fine_tune_data
from edgeft.export.options import ExportOptions
from edgeft.export.pipeline import export
from edgeft.formats import FORMATS
from edgeft.progress import say
from edgeft.records import Artifact, Score
from edgeft.report import tables
from edgeft.runtimes.protocol import Runtime, open_runtime

CHAT_TOKENS = 2048
"""longest chat to compare on"""
PLAIN_FOLDER = "plain"
"""folder of the variants without calibration"""


@dataclass(frozen=True)
class Variant:
    """One artifact of the model, and how to export it."""

    name: str
    quant: str
    folder: str = PLAIN_FOLDER
    """folder in --out; variants of one folder are exported together and share their calibration"""
    format: str = "gguf"
    options: Mapping[str, Any] = field(default_factory=dict)
    """fields of `ExportOptions`, the same for all variants of a folder"""
    against: str = ""
    """the variant that it is compared with in the second table"""


IMATRIX = {"imatrix": "auto"}
VARIANTS = (
    Variant("f16", "f16"),
    Variant("q8_0", "q8_0"),
    Variant("q4_k_m", "q4_k_m"),
    Variant("q4_k_m, imatrix", "q4_k_m", "imatrix", options=IMATRIX, against="q4_k_m"),
    Variant("q4_k_m, gptq", "gptq-q4_k_m", "gptq", against="q4_k_m, imatrix"),
    Variant("q4_0", "q4_0"),
    Variant("q4_0, imatrix", "q4_0", "imatrix", options=IMATRIX, against="q4_0"),
    Variant("q4_0, gptq", "gptq-q4_0", "gptq", against="q4_0, imatrix"),
    Variant("gptq 4bit", "4bit", "gptq-folder", format="gptq", against="q4_0, imatrix"),
)
"""the reference first"""


@dataclass(frozen=True)
class Options:
    base: str
    out: Path
    adapter: Path | None = None
    dither: int | None = None
    padded: bool = False
    base_precision: Any = "auto"
    validation: Path | None = None
    calibration: Path | None = None
    chats: int | None = None
    text: Path | None = None
    chunks: int = 40
    items: str = "smart_home"
    limit: int | None = None
    rounds: int = 3
    threads: int = len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Result:
    """All measurements of one variant."""

    variant: Variant
    artifact: Artifact
    chats: Fidelity | None
    text: Fidelity | None
    score: Score | None
    speeds: list[float]
    """decoded tokens per second, one value per round"""

    def to_json(self) -> dict[str, Any]:
        facts = self.artifact.manifest.facts
        return {
            "name": self.variant.name,
            "bytes": evaluate.size_of(self.artifact.path),
            "chats": self.chats.to_json() if self.chats else None,
            "text": self.text.to_json() if self.text else None,
            "accuracy": self.score.accuracy if self.score else None,
            "decode_tps": self.speeds,
            "seconds": facts.get("seconds"),
            "beta": facts.get("proof", {}).get("beta"),
        }


def known(variants: Sequence[Variant]) -> list[Variant]:
    """Those whose type is in the formats table."""
    return [v for v in variants if v.format in FORMATS and v.quant in FORMATS[v.format].quants]


def run(options: Options, variants: Sequence[Variant]) -> tuple[list[Result], dict[str, Any]]:
    """Export and measure: (one result per variant, facts about the texts and items used)."""
    if options.adapter is None and options.text is None:
        raise InputError("there is nothing to measure on", "--adapter, --text or both")
    adapters = (Weighted(options.adapter),) if options.adapter else ()
    base = resolve_base(options.base, options.dither)
    if options.padded:
        base = pad(base, options.out / "padded")
    artifacts = export_variants(options, variants, adapters, str(base))
    on: dict[str, Any] = {"base_precision": artifacts[0].manifest.facts["base_precision"]}
    with contextlib.ExitStack() as stack:
        models = [
            stack.enter_context(open_runtime(artifact.path, options.threads, CHAT_TOKENS))
            for artifact in artifacts
        ]
        sequences = texts(options, adapters, models[0], on)
        fidelities = {
            name: [
                None,
                *compare.compare_fidelity(models[0], models[1:], items, f"fidelity ({name})"),
            ]
            for name, items in sequences.items()
        }
    scores: list[Score | None] = [None] * len(variants)
    if adapters:
        how = EvalOptions(options.items, limit=options.limit, threads=options.threads)
        items = evaluate.load_items(how)
        scores = [evaluate.measure(artifact.path, items, how) for artifact in artifacts]
        on["items"] = {"name": options.items, "count": len(items.examples)}
    speeds = decode_speeds([artifact.path for artifact in artifacts], options)
    nothing: list[Fidelity | None] = [None] * len(variants)
    columns = zip(
        variants, artifacts, fidelities.get("chats", nothing), fidelities.get("text", nothing), scores,
        speeds,
        strict=True,
    )  # fmt: skip
    return [Result(*column) for column in columns], on


def export_variants(
    options: Options, variants: Sequence[Variant], adapters: tuple[Weighted, ...], base: str
) -> list[Artifact]:
    """Export folder by folder; all onto the base precision that was chosen for the first folder."""
    artifacts: dict[tuple[str, str], Artifact] = {}
    base_precision = options.base_precision
    for folder in dict.fromkeys(variant.folder for variant in variants):
        members = [variant for variant in variants if variant.folder == folder]
        more = dict(members[0].options)
        if folder != PLAIN_FOLDER and options.calibration:
            more["calibration"] = options.calibration
        exported = export(
            ExportOptions(
                out=options.out / folder, adapter=adapters, base=base,
                formats=(members[0].format,), quants=tuple(member.quant for member in members),
                base_precision=base_precision, validation_data=options.validation, compare_live=False,
                threads=options.threads, overwrite=True, **more,
            )
        )  # fmt: skip
        artifacts |= {(folder, artifact.quant): artifact for artifact in exported}
        base_precision = exported[0].manifest.facts["base_precision"]["chosen"]
    return [artifacts[variant.folder, variant.quant] for variant in variants]


def texts(
    options: Options, adapters: tuple[Weighted, ...], model: Runtime, on: dict[str, Any]
) -> dict[str, list[ScoredSequence]]:
    """Name of a text -> its token ids; facts about the texts are added to `on`."""
    sequences = {}
    data = fine_tune_data(adapters, options.validation, None)
    if data.validation:
        chats, longest = data.validation[: options.chats], min(CHAT_TOKENS, model.context)
        sequences["chats"] = compare.chat_answers(chats, model.chat, model.encode, longest)
        on["chats"] = {"sha256": fingerprint(chats), "count": len(sequences["chats"]),
                       "tokens": _tokens(sequences["chats"])}  # fmt: skip
    elif adapters:
        say(f"no chats to compare on: {data.why_no_validation} (--validation FILE)")
    if options.text:
        sequences["text"] = compare.file_chunks(options.text, model, options.chunks)
        on["text"] = {"sha256": files.sha256(options.text), "chunks": options.chunks,
                      "tokens": _tokens(sequences["text"])}  # fmt: skip
    return sequences


def _tokens(sequences: Sequence[ScoredSequence]) -> int:
    return sum(len(item.rows) for item in sequences)


def decode_speeds(artifacts: Sequence[Path], options: Options) -> list[list[float]]:
    """Tokens per second: one list per artifact, each of which is timed once per round, in turn."""
    by_artifact: list[list[float]] = [[] for _ in artifacts]
    for number in range(options.rounds):
        say(f"speed, round {number + 1} of {options.rounds}")
        for artifact, speeds in zip(artifacts, by_artifact, strict=True):
            speeds.append(latency.measure(artifact, options.threads)[0].decode_tps)
    return by_artifact


def table(results: Sequence[Result]) -> str:
    columns = [*_fidelity_head("chats"), *_fidelity_head("text")]
    rows = [
        [
            result.variant.name,
            files.format_bytes(evaluate.size_of(result.artifact.path)),
            *_fidelity_cells(result.chats),
            *_fidelity_cells(result.text),
            f"{result.score.accuracy:.1%}" if result.score else "-",
            _speed(result.speeds),
        ]
        for result in results
    ]
    return tables.table(["model", "size", *columns, "task", "decode t/s"], rows)


def _fidelity_head(name: str) -> list[str]:
    return [f"{name}: KL", "same top", "PPL ratio"]


def _fidelity_cells(fidelity: Fidelity | None) -> list[str]:
    if fidelity is None:
        return ["-"] * 3
    ratio = Estimate(
        fidelity.perplexity_ratio, fidelity.log_ppl_ratio.error * fidelity.perplexity_ratio
    )
    kl = f"{fidelity.kl.value:.3g} ± {fidelity.kl.error:.2g}"
    return [kl, _plus(fidelity.top1, 1, 100, "%"), _plus(ratio, 3)]


def _speed(speeds: Sequence[float]) -> str:
    if not speeds:
        return "-"
    return f"{statistics.median(speeds):.0f} ({min(speeds):.0f}-{max(speeds):.0f})"


def _plus(estimate: Estimate, digits: int, factor: float = 1, unit: str = "") -> str:
    value, error = estimate.value * factor, estimate.error * factor
    return f"{value:.{digits}f}{unit} ± {error:.{digits}f}"


def versus(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Each variant against the one that it names, paired by sequence and by item."""
    by_name = {result.variant.name: result for result in results}
    entries = []
    for result in results:
        other = by_name.get(result.variant.against)
        if other is None:
            continue
        entry: dict[str, Any] = {"name": result.variant.name, "against": other.variant.name}
        for name in ("chats", "text"):
            one, two = getattr(result, name), getattr(other, name)
            entry[name] = None if one is None else {
                "kl_ratio": compare.kl_ratio(one, two),
                "kl": compare.paired_difference(one, two, "kl"),
                "top1": compare.paired_difference(one, two, "top1"),
                "surprise": compare.paired_difference(one, two, "log_ppl_ratio"),
            }  # fmt: skip
        if result.score and other.score:
            flips = Paired.count(other.score.values, result.score.values)
            entry["task"] = {"won": flips.won, "lost": flips.lost, "mid_p": mid_p(flips)}
        entries.append(entry)
    return entries


def versus_table(entries: Sequence[dict[str, Any]]) -> str:
    head = ["paired", *_versus_head("chats"), *_versus_head("text"), "task won, lost", "mid-p"]
    rows = [
        [
            f"{entry['name']} / {entry['against']}",
            *_versus_cells(entry["chats"]),
            *_versus_cells(entry["text"]),
            "{won}, {lost}".format(**entry["task"]) if "task" in entry else "-",
            "{mid_p:.3f}".format(**entry["task"]) if "task" in entry else "-",
        ]
        for entry in entries
    ]
    return tables.table(head, rows)


def _versus_head(name: str) -> list[str]:
    return [f"{name}: KL ratio (95 %)", "same top, points", "log PPL"]


def _versus_cells(estimates: dict[str, Estimate] | None) -> list[str]:
    if estimates is None:
        return ["-"] * 3
    ratio, top1, log_ppl = estimates["kl_ratio"], estimates["top1"], estimates["surprise"]
    wide = (
        1.96 * ratio.error / (ratio.value or 1)
    )  # interval of the logarithm, which is less skewed
    low, high = (ratio.value * math.exp(sign * wide) for sign in (-1, 1))
    return [f"{ratio.value:.2f} ({low:.2f}-{high:.2f})", _plus(top1, 1, 100), _plus(log_ppl, 3)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--base", required=True, help="as for edgeft merge-export")
    parser.add_argument("--adapter", type=Path, help="without one the base is measured as it is")
    parser.add_argument("--out", type=Path, required=True, help="folder for the artifacts")
    parser.add_argument("--dither", type=int, metavar="SEED", help="move the base off its grid")
    parser.add_argument("--padded", action="store_true", help="in a shape that 256 divides")
    parser.add_argument(
        "--base-precision", choices=["auto", "stored", "nf4", "fp4"], default="auto"
    )
    parser.add_argument("--validation", type=Path, help="chats to compare on [what training held]")
    parser.add_argument("--calibration", type=Path, help="chats to calibrate on [the training's]")
    parser.add_argument("--chats", type=int, help="only so many of them to compare on")
    parser.add_argument("--text", type=Path, help="plain text to compare on")
    parser.add_argument("--chunks", type=int, default=Options.chunks, help="of 512 tokens")
    parser.add_argument("--items", default=Options.items, help="the task; asked with an adapter")
    parser.add_argument("--limit", type=int, help="only so many of its items")
    parser.add_argument("--rounds", type=int, default=Options.rounds, help="of speeds; 0 = none")
    parser.add_argument("--threads", type=int, default=Options.threads)
    names = [variant.name for variant in VARIANTS]
    parser.add_argument("--row", action="append", choices=names, help="only these, and f16")
    chosen = vars(parser.parse_args(arguments))
    only = chosen.pop("row") or names
    options = Options(**chosen)
    variants = [variant for variant in known(VARIANTS) if variant.name in ("f16", *only)]
    try:
        results, on = run(options, variants)
    except EdgeftError as error:
        sys.exit(str(error))
    entries = versus(results)
    print(machine.describe_machine())
    print(table(results), end="\n\n")
    print(versus_table(entries))
    line = {
        "machine": machine.describe_machine(),
        "base": options.base,
        "dither": options.dither,
        "padded": options.padded,
        "adapter": store.identity(options.adapter) if options.adapter else None,
        "on": on,
        "rows": [result.to_json() for result in results],
        "versus": entries,
    }
    print(json.dumps(line, default=asdict))


if __name__ == "__main__":
    main()
