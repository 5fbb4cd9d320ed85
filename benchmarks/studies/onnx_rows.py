"""One model -> ONNX beside GGUF and torch, in one run: speed, memory, size, fidelity, accuracy.

    python -m edgeft.benchmarks.studies.onnx_rows --base smollm2-135m --adapter adapter --out rows \
        --text wiki.test.raw
    python -m edgeft.benchmarks.studies.onnx_rows --shape qwen2-0.5b --out random

Every variant is exported into --out, and onnxruntime-genai's own builder makes its default int4 of the
merged model. Speeds are those of `edgeft.benchmarks.performance.latency`, each in a process of its own, in
alternating rounds; the table has medians with the smallest and the largest value. With --adapter each
variant is compared with torch in float32 on the chats that training held out, on --text, and on the task.
`--shape` makes random weights, for speed only. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeft import files, machine, store
from edgeft.adapter.read import Weighted
from edgeft.base.resolve import resolve_base
from edgeft.benchmarks.fidelity.compare import Fidelity, compare_fidelity
from edgeft.benchmarks.options import EvalOptions
from edgeft.benchmarks.performance import latency
from edgeft.benchmarks.quality import evaluate
from edgeft.benchmarks.studies import four_bit, random_model
from edgeft.benchmarks.studies.four_bit import Variant
from edgeft.errors import EdgeftError
from edgeft.progress import say
from edgeft.records import Memory, Score, Speed
from edgeft.report import tables
from edgeft.runtimes.protocol import open_runtime

BUILDER = {
    "builder's int4": [],
    "builder's k-quant mixed": ["algo_config=k_quant_mixed"],
}
"""name of a further row -> extra options of onnxruntime-genai's builder, which makes that model"""
MAX_OPEN_MODELS = 4
"""models that are open at a time, besides the reference"""
WIDE = {"group_size": 64}
VARIANTS = (
    Variant("torch f32", "f32", "hf", format="hf"),
    Variant("q4_0", "q4_0"),
    Variant("q4_0, gptq", "gptq-q4_0", "gptq"),
    Variant("q4_k_m", "q4_k_m"),
    Variant("onnx f32", "f32", "onnx", format="onnx"),
    Variant("onnx int8", "int8", "onnx", format="onnx"),
    Variant("onnx int4-mixed", "int4-mixed", "onnx", format="onnx"),
    Variant("onnx int4-mixed, 64", "int4-mixed", "onnx64", format="onnx", options=WIDE),
    Variant("onnx gptq-int4", "gptq-int4", "onnx-gptq", format="onnx"),
    Variant("onnx gptq-int4, 64", "gptq-int4", "onnx-gptq64", format="onnx", options=WIDE),
    Variant("onnx int4", "int4", "onnx", format="onnx"),
    Variant("onnx int4, 64", "int4", "onnx64", format="onnx", options=WIDE),
    Variant("onnx int4, 128", "int4", "onnx128", format="onnx", options={"group_size": 128}),
)
"""the reference first"""


@dataclass
class Result:
    """All measurements of one model."""

    name: str
    path: Path
    runs: list[tuple[Speed, Memory]] = field(default_factory=list)
    """one per round"""
    chats: Fidelity | None = None
    text: Fidelity | None = None
    score: Score | None = None

    def middle(self, name: str) -> float:
        return statistics.median(self.each(name))

    def each(self, name: str) -> list[float]:
        return [float((vars(run[0]) | vars(run[1]))[name]) for run in self.runs]

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "bytes": evaluate.size_of(self.path),
            **{name: self.each(name) for name in
               ("prefill_tps", "decode_tps", "ttft_s", "load_s", "peak", "anonymous")},
            "chats": self.chats.to_json() if self.chats else None,
            "text": self.text.to_json() if self.text else None,
            "accuracy": self.score.accuracy if self.score else None,
        }  # fmt: skip


def run(options: four_bit.Options, variants: Sequence[Variant]) -> list[Result]:
    """Export every variant, run the builder, and measure all of them."""
    adapters = (Weighted(options.adapter),) if options.adapter else ()
    base = resolve_base(options.base, options.dither)
    artifacts = four_bit.export_variants(options, variants, adapters, str(base))
    results = [
        Result(variant.name, artifact.path)
        for variant, artifact in zip(variants, artifacts, strict=True)
    ]
    for number, (name, more) in enumerate(BUILDER.items()):
        out = options.out / f"builder-{number}"
        results.append(Result(name, run_builder(artifacts[0].path, out, more)))
    if adapters or options.text:
        add_fidelity(options, adapters, results)
    if adapters:
        how = EvalOptions(options.items, limit=options.limit, threads=options.threads)
        items = evaluate.load_items(how)
        for result in results:
            result.score = evaluate.measure(result.path, items, how)
    for number in range(options.rounds):
        say(f"speed, round {number + 1} of {options.rounds}")
        for result in results:
            result.runs.append(latency.measure(result.path, options.threads))
    return results


def run_builder(folder: Path, out: Path, more: Sequence[str]) -> Path:
    """Convert a Hugging Face folder with onnxruntime-genai's builder, as its help says; `out`."""
    if not (out / "genai_config.json").is_file():
        say("onnxruntime-genai's builder")
        command = [sys.executable, "-P", "-m", "onnxruntime_genai.models.builder", "-i", str(folder),
                   "-o", str(out), "-p", "int4", "-e", "cpu", "-c", str(out / "cache")]  # fmt: skip
        command += ["--extra_options", *more] if more else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise EdgeftError(f"the builder failed: {done.stderr.strip().splitlines()[-1:]}")
    return out


def add_fidelity(
    options: four_bit.Options, adapters: tuple[Weighted, ...], results: Sequence[Result]
) -> None:
    """Compare each model with the first on the same tokens and set `chats` and `text`."""
    first, *others = results
    with contextlib.ExitStack() as stack:
        reference = stack.enter_context(
            open_runtime(first.path, options.threads, four_bit.CHAT_TOKENS)
        )
        sequences = four_bit.texts(options, adapters, reference, {})
        for start in range(0, len(others), MAX_OPEN_MODELS):
            some = others[start : start + MAX_OPEN_MODELS]
            with contextlib.ExitStack() as opened:
                models = [
                    opened.enter_context(
                        open_runtime(result.path, options.threads, four_bit.CHAT_TOKENS)
                    )
                    for result in some
                ]
                for name, items in sequences.items():
                    fidelities = compare_fidelity(reference, models, items, f"fidelity ({name})")
                    for result, fidelity in zip(some, fidelities, strict=True):
                        setattr(result, name, fidelity)


def table(results: Sequence[Result]) -> str:
    head = ["model", "size", "prefill t/s", "decode t/s", "TTFT ms", "load s", "peak memory",
            "chats: KL", "text: KL", "same top", "task"]  # fmt: skip
    rows = []
    for result in results:
        speeds = ["-"] * 5
        if result.runs:
            speeds = [
                _spread(result.each("prefill_tps")), _spread(result.each("decode_tps")),
                f"{result.middle('ttft_s') * 1000:.0f}", f"{result.middle('load_s'):.2f}",
                files.format_bytes(int(result.middle("peak"))),
            ]  # fmt: skip
        text = result.text
        rows.append([
            result.name, files.format_bytes(evaluate.size_of(result.path)), *speeds, _kl(result.chats),
            _kl(text), f"{text.top1.value:.1%}" if text else "-",
            f"{result.score.accuracy:.1%}" if result.score else "-",
        ])  # fmt: skip
    return tables.table(head, rows)


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.0f} ({min(values):.0f}-{max(values):.0f})"


def _kl(fidelity: Fidelity | None) -> str:
    return f"{fidelity.kl.value:.3g} ± {fidelity.kl.error:.2g}" if fidelity else "-"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--base", help="as for edgeft merge-export")
    model.add_argument(
        "--shape", choices=random_model.SHAPES, help="random weights in a real shape"
    )
    parser.add_argument("--adapter", type=Path, help="without one the base is measured as it is")
    parser.add_argument("--out", type=Path, required=True, help="folder for the artifacts")
    parser.add_argument("--dither", type=int, metavar="SEED", help="move the base off its grid")
    parser.add_argument("--validation", type=Path, help="chats to compare on [what training held]")
    parser.add_argument("--calibration", type=Path, help="chats to calibrate on [the training's]")
    parser.add_argument("--chats", type=int, help="only so many of them to compare on")
    parser.add_argument("--text", type=Path, help="plain text to compare on")
    parser.add_argument("--chunks", type=int, default=four_bit.Options.chunks, help="of 512 tokens")
    parser.add_argument("--limit", type=int, help="only so many items of the task")
    parser.add_argument(
        "--rounds", type=int, default=four_bit.Options.rounds, help="of speeds; 0 = none"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    names = [variant.name for variant in VARIANTS]
    parser.add_argument("--row", action="append", choices=names, help="only these, and the first")
    chosen = vars(parser.parse_args(arguments))
    only, shape = chosen.pop("row") or names, chosen.pop("shape")
    variants = [variant for variant in VARIANTS if variant.name in (VARIANTS[0].name, *only)]
    if not (chosen["adapter"] or chosen["calibration"]):
        variants = [variant for variant in variants if not variant.quant.startswith("gptq-")]
    try:
        if shape:
            chosen["base"] = str(chosen["out"] / "model" / "base")
            if not Path(chosen["base"]).is_dir():
                random_model.make_model(chosen["out"] / "model", random_model.SHAPES[shape])
        results = run(four_bit.Options(**chosen), variants)
    except EdgeftError as error:
        sys.exit(str(error))
    print(machine.describe_machine())
    print(table(results))
    line = {
        "machine": machine.describe_machine(),
        "base": shape or chosen["base"],
        "adapter": store.identity(chosen["adapter"]) if chosen["adapter"] else None,
        "rows": [result.to_json() for result in results],
    }
    print(json.dumps(line, default=dataclasses.asdict))


if __name__ == "__main__":
    main()
