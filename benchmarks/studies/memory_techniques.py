"""Every way to save memory in a training -> peak memory, speed and loss on one model: one table.

    python -m edgeft.benchmarks.studies.memory_techniques --out techniques

All rows train the embedded suite with the same batches, steps and seed, each in a process of its own.
Examples are not grouped by length, because groups are made for a micro-batch. Two peaks: the resident set (VmHWM), and its anonymous part (RssAnon, sampled every 10 ms), which the kernel
cannot drop. Rows of LoRA have one start and differ from the first row in nothing but their options. Rows of
NF4 have another base, and full fine-tuning has a learning rate of its own, LOMO one that suits SGD. Ends with
one JSON line.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from edgeft import machine, store
from edgeft.benchmarks.studies.measured_process import run
from edgeft.benchmarks.studies.training_methods import SUITE, arguments
from edgeft.benchmarks.suites import load_suite
from edgeft.errors import EdgeftError
from edgeft.report import tables

CHECKPOINT, ONE = ("--checkpoint-activations",), ("--micro-batch-size", "1")
OFFLOAD, MAPPED = ("--offload-activations",), ("--offload-weights",)
TECHNIQUES: dict[str, tuple[str, ...]] = {
    "LoRA, float32, SDPA": ("lora",),
    "eager attention": ("lora", "--attention", "eager"),
    "bfloat16": ("lora", "--compute-type", "bf16"),
    "micro-batch 1, gradients accumulated": ("lora", *ONE),
    "checkpointed activations": ("lora", *CHECKPOINT),
    "offloaded activations": ("lora", *OFFLOAD),
    "offloaded weights": ("lora", *MAPPED),
    "all four": ("lora", *ONE, *CHECKPOINT, *OFFLOAD, *MAPPED),
    "NF4, dequantized once": ("qlora",),
    "NF4, kept in 4 bits": ("qlora", "--keep-4bit"),
    "the same, micro-batch 1, checkpointed": ("qlora", "--keep-4bit", *ONE, *CHECKPOINT),
    "full, AdamW": ("full",),
    "full, Adafactor": ("full", "--optimizer", "adafactor"),
    "full, GaLore": ("full", "--optimizer", "galore"),
    "full, LOMO": ("full", "--optimizer", "lomo", "--max-grad-norm", "0", "--learning-rate", "0.01"),
}  # fmt: skip
"""name -> a method and words of `edgeft train`"""


@dataclass(frozen=True)
class Row:
    """One training."""

    technique: str
    resident_mb: float
    anonymous_mb: float
    tokens_per_second: float
    losses: list[float]
    """of every step, nats a token"""


def measure(name: str, options: Namespace) -> Row:
    """Train once; the result is deleted. InputError where the training fails."""
    method, *words = TECHNIQUES[name]
    if "--compute-type" not in words:
        words += ["--compute-type", "fp32"]
    output = options.out / "training"
    command = [
        sys.executable, "-m", "edgeft", "train", "--method", method, "--base", options.base,
        "--data", load_suite(SUITE).train, "--output", output, "--overwrite", "--steps", options.steps,
        "--batch-size", options.batch_size, "--validation-size", 0, "--save-every", 0,
        "--no-group-by-length", *words,
    ]  # fmt: skip
    step = run(list(map(str, command)), os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    manifest = store.read_manifest(output)
    assert manifest is not None
    shutil.rmtree(output)
    return Row(
        technique=name,
        resident_mb=step.resident / 1e6,
        anonymous_mb=step.anonymous / 1e6,
        tokens_per_second=manifest.facts["tokens_per_second"],
        losses=[loss for _, loss in manifest.facts["loss"]],
    )


def table(rows: Sequence[Row]) -> str:
    """One line a row, in Markdown."""
    last = len(rows[0].losses)
    header = ("technique", "peak MB", "anonymous MB", "tokens/s", "loss at step 1", f"at {last}")
    return tables.table(header, [
        (row.technique, f"{row.resident_mb:,.0f}", f"{row.anonymous_mb:,.0f}",
         f"{row.tokens_per_second:.0f}", f"{row.losses[0]:.4f}", f"{row.losses[-1]:.4f}")
        for row in rows
    ])  # fmt: skip


def main() -> None:
    parser = arguments(str(__doc__).partition("\n")[0])
    parser.set_defaults(steps=6)
    parser.add_argument("--only", nargs="*", choices=TECHNIQUES, default=list(TECHNIQUES))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in options.only:
        try:
            rows.append(measure(name, options))
        except EdgeftError as error:
            print(f"{name} is left out: {error}", file=sys.stderr, flush=True)
            continue
        print(json.dumps(asdict(rows[-1])), file=sys.stderr, flush=True)
    if not rows:
        sys.exit("error: no row could be measured")
    print(table(rows))
    print(json.dumps({
        "machine": machine.describe_machine(), "steps": options.steps,
        "batch_size": options.batch_size, "rows": [asdict(row) for row in rows],
    }))  # fmt: skip


if __name__ == "__main__":
    main()
