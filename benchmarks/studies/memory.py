"""`edgeft plan` against measured peaks: one fresh process for each model and option, one table.

    python -m edgeft.benchmarks.studies.memory --work build/memory
    python -m edgeft.benchmarks.studies.memory --work build/memory --only smollm2-135m

The peak is the largest resident set of the whole process (VmHWM). Three steps
are enough: it does not grow after the second.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft.base.resolve import resolve_base
from edgeft.benchmarks.studies.measured_process import run
from edgeft.benchmarks.studies.random_model import SHAPES, make_model
from edgeft.benchmarks.suites import load_suite

MODELS = {
    "tiny": SHAPES["qwen2-tiny"],
    "smollm2-135m": None,
    "350m": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24,
             "num_attention_heads": 16, "num_key_value_heads": 8, "vocab_size": 32000},
    "1b-4-layers": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 4,
                    "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 32000},
}  # fmt: skip
"""name -> shape of a random Qwen2; None: an embedded base"""
VARIANTS = {
    "plain": [],
    "checkpoint": ["--checkpoint-activations"],
    "4bit": ["--keep-4bit"],
    "bf16": ["--compute-type", "bf16"],
    "offload": ["--offload-activations"],
    "mapped": ["--offload-weights"],
}
ROWS, STEPS = 120, 3


@dataclass(frozen=True)
class Peak:
    model: str
    method: str
    variant: str
    predicted: int
    measured: int

    @property
    def ratio(self) -> float:
        return self.predicted / self.measured


def measured_peak(args: list[str]) -> int:
    """Largest resident set of `edgeft ARGS` in a fresh process, bytes; InputError where it fails."""
    return run([sys.executable, "-m", "edgeft", *args]).resident


def predicted_peak(method: str, options: list[str]) -> int:
    """What `edgeft plan` says of the same options."""
    command = [sys.executable, "-m", "edgeft", "plan", "--method", method, "--json", *options]
    facts = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return int(facts["methods"][0]["memory"]["peak"])


def peaks(
    work: Path, models: list[str], methods: list[str], variants: list[str], micro_batch: int
) -> Iterator[Peak]:
    """One row for each combination."""
    work.mkdir(parents=True, exist_ok=True)
    data = work / "chats.jsonl"
    rows = load_suite("smart_home").train.read_text(encoding="utf-8").splitlines()[:ROWS]
    data.write_text("\n".join(rows))
    for model in models:
        base = base_folder(work, model)
        for method in methods:
            for variant in variants:
                shared = ["--base", str(base), "--data", str(data), "--compute-type", "fp32",
                          "--batch-size", "8", "--micro-batch-size", str(micro_batch),
                          *VARIANTS[variant]]  # fmt: skip
                train = ["train-qlora"] if method == "qlora" else ["train", "--method", method]
                command = [*train, *shared, "--output", str(work / "out"), "--overwrite",
                           "--steps", str(STEPS), "--validation-size", "0", "--save-every", "0",
                           "--threads", "1"]  # fmt: skip
                measured = measured_peak(command)
                yield Peak(model, method, variant, predicted_peak(method, shared), measured)


def base_folder(work: Path, model: str) -> Path:
    shape: dict[str, Any] | None = MODELS[model]
    if shape is None:
        return resolve_base(model).resolve()
    if not (work / model).is_dir():
        make_model(work / model, shape)
    return work / model / "base"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", action="append", choices=MODELS)
    parser.add_argument("--method", action="append")
    parser.add_argument("--variant", action="append", choices=VARIANTS)
    parser.add_argument("--micro-batch", type=int, default=4)
    args = parser.parse_args()
    print(
        "| model | method | variant | predicted MB | measured MB | ratio |\n|---|---|---|--:|--:|--:|"
    )
    for row in peaks(args.work.resolve(), args.only or list(MODELS), args.method or ["qlora"],
                     args.variant or ["plain", "checkpoint"], args.micro_batch):  # fmt: skip
        print(f"| {row.model} | {row.method} | {row.variant} | {row.predicted / 1e6:,.0f} "
              f"| {row.measured / 1e6:,.0f} | {row.ratio:.2f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
