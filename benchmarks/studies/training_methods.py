"""Every training method on one task -> accuracy, trained share, memory, speed, size: one table.

    python -m edgeft.benchmarks.studies.training_methods --base smollm2-135m --steps 120 --out methods

Each method trains the embedded suite with its own default learning rate, in a process of its own, is
exported with the check against the live model, and answers the suite's test items. A complete training or
export is kept. Ends with one JSON line. `gpu.py` sets two devices side by side.

Memory is the largest anonymous memory (RssAnon) of the training process, sampled every 10 ms. It leaves
out the mapped files, which the system can drop.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeft import machine, store
from edgeft.benchmarks.studies.measured_process import run
from edgeft.benchmarks.suites import load_suite
from edgeft.errors import EdgeftError, InputError
from edgeft.report import tables
from edgeft.train.registry import METHODS

SUITE = "smart_home"


@dataclass(frozen=True)
class Row:
    """One method on one device."""

    method: str
    device: str
    trained_percent: float
    """weights that train / weights of the base"""
    validation_loss: float
    """at the end, nats per token"""
    accuracy: float
    """share of the test items that the exported artifact answers"""
    tokens_per_second: float
    anonymous_mb: float | None
    """largest anonymous memory of the training; None where it was complete before"""
    result_mb: float
    losses: list[list[float]]
    """[[step, training loss], …]"""


def measure(name: str, device: str, options: argparse.Namespace, more: Sequence[str] = ()) -> Row:
    """Train, export and ask one method. InputError where a step fails.

    `name`: a method, or one with a variant's name behind it. `more`: words of `edgeft train`.
    """
    suite = load_suite(SUITE)
    method, folder = name.partition(" ")[0], options.out / device
    key = name.replace(" ", "-")
    result, exported = folder / key, folder / f"{key}-{options.quant}"
    environment = {} if device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
    step = None
    if store.read_manifest(result) is None:
        step = _edgeft(
            environment, "train", "--method", method, "--base", options.base,
            "--data", suite.train, "--validation-data", suite.validation, "--output", result,
            "--steps", options.steps, "--batch-size", options.batch_size, "--save-every", 0, *more,
        )  # fmt: skip
    manifest = store.read_manifest(result)
    assert manifest is not None
    facts = manifest.facts
    if facts["device"] != device:
        raise InputError(f"{name} trained on {facts['device']}, not on {device}")
    source = "--base" if manifest.kind == "base" else "--adapter"
    _edgeft({}, "merge-export", source, result, "--out", exported, "--quant", options.quant)
    artifact = exported / f"{options.quant}.gguf"
    answers = folder / f"{key}.json"
    limit = ["--limit", options.limit] if options.limit else []
    _edgeft({}, "bench", artifact, "--items", SUITE, "--no-speed", "--json", *limit, output=answers)
    values = json.loads(answers.read_text())["rows"][0]["score"]["values"]
    size = sum(file.size for file in manifest.files.values())
    return Row(
        method=name,
        device=device,
        trained_percent=100 * facts["trained_parameters"] / facts["parameters"],
        validation_loss=facts["validation_loss"][-1][1],
        accuracy=sum(values) / len(values),
        tokens_per_second=facts["tokens_per_second"],
        anonymous_mb=step.anonymous / 1e6 if step else None,
        result_mb=size / 1e6,
        losses=facts["loss"],
    )


def _edgeft(environment: dict[str, str], *words: Any, output: Path | None = None) -> Any:
    command = [sys.executable, "-m", "edgeft", *map(str, words)]
    return run(command, os.environ | environment, output)


def arguments(description: str) -> argparse.ArgumentParser:
    """The arguments that all studies of training methods take."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--quant", default="q8_0")
    parser.add_argument("--limit", type=int, help="of the test items; default: all")
    return parser


def table(rows: Sequence[Row]) -> str:
    """One line a row, in Markdown."""
    header = (
        "method",
        "device",
        "trained",
        "validation loss",
        "accuracy",
        "tokens/s",
        "memory",
        "result",
    )
    cells = [
        (row.method, row.device, f"{row.trained_percent:.2f} %", f"{row.validation_loss:.4f}",
         f"{row.accuracy:.1%}", f"{row.tokens_per_second:.0f}",
         f"{row.anonymous_mb:.0f} MB" if row.anonymous_mb else "", f"{row.result_mb:.1f} MB")
        for row in rows
    ]  # fmt: skip
    return tables.table(header, cells)


def report(rows: Sequence[Row], options: argparse.Namespace, **more: Any) -> str:
    """The JSON line of a study."""
    return json.dumps({
        "machine": machine.describe_machine(),
        "steps": options.steps,
        "batch_size": options.batch_size,
        "rows": [{k: v for k, v in asdict(row).items() if k != "losses"} for row in rows],
        **more,
    })  # fmt: skip


def main() -> None:
    parser = arguments(str(__doc__).partition("\n")[0])
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    options = parser.parse_args()
    rows = []
    for method in options.methods:
        rows.append(measure(method, "cpu", options))
        print(json.dumps(asdict(rows[-1])), file=sys.stderr, flush=True)
    print(table(rows))
    print(report(rows, options))


if __name__ == "__main__":
    try:
        main()
    except EdgeftError as error:
        sys.exit(f"error: {error}")
