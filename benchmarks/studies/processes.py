"""One process, and two that divide more and more -> difference of the curves, memory a process, tokens/s: a table.

    python -m edgeft.benchmarks.studies.processes --out processes

A random Qwen2 trains all its weights on the embedded suite, in a run of its own each. The batches are the same:
micro-batches of `--micro-batch-size` examples, in one process twice as many. Memory is the anonymous part
(RssAnon), sampled every 10 ms, of the process that needs most: its peak, which includes the whole base while it
is loaded and the whole result while it is written, and the median of the second half of the run, most of which
is training.
Rows that are in OUT/rows.json are not measured again. Ends with one JSON line.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from edgeft import machine, store
from edgeft.benchmarks.studies.random_model import make_model
from edgeft.benchmarks.suites import load_suite
from edgeft.errors import EdgeftError, InputError
from edgeft.machine import kilobytes
from edgeft.report import tables

SUITE = "smart_home"
SHAPE = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 8,
         "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 512}  # fmt: skip
"""101 million weights"""
KINDS = ("one", "ddp", "fsdp2", "zero1", "zero2", "zero3")


@dataclass(frozen=True)
class Row:
    """One training."""

    kind: str
    losses: list[float]
    """of every step, nats a token"""
    difference: float
    """largest difference of a step's loss to that of one process"""
    peak_mb: float
    steady_mb: float
    tokens_per_second: float


def measure(kind: str, options: Namespace, base: Path, losses: Sequence[float]) -> Row:
    """Train once; the result is deleted. `losses`: of one process, or empty. InputError where it fails."""
    output = options.out / "training"
    words = () if kind == "one" else ("--processes", 2, "--parallel", kind)
    command = [
        sys.executable, "-m", "edgeft", "train", "--method", "full", "--base", base,
        "--data", load_suite(SUITE).train, "--output", output, "--overwrite", "--steps", options.steps,
        "--batch-size", 2 * options.micro_batch_size, "--micro-batch-size", options.micro_batch_size,
        "--validation-size", 0, "--save-every", 0, "--compute-type", "fp32", "--threads", 1, *words,
    ]  # fmt: skip
    peak, steady = sampled([str(word) for word in command])
    manifest = store.read_manifest(output)
    assert manifest is not None
    shutil.rmtree(output)
    curve = [loss for _, loss in manifest.facts["loss"]]
    pairs = zip(curve, losses or curve, strict=True)
    return Row(
        kind,
        curve,
        max(abs(a - b) for a, b in pairs),
        peak / 1e6,
        steady / 1e6,
        manifest.facts["tokens_per_second"],
    )


def sampled(command: list[str]) -> tuple[int, int]:
    """(peak, median of the second half) of RssAnon, bytes, of the process of a run that needs most."""
    samples: list[int] = []
    with tempfile.TemporaryFile("w+") as log:
        run = subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}
        )
        while run.poll() is None:
            pids = (run.pid, *children(run.pid))
            samples.append(max(kilobytes(f"/proc/{pid}/status").get("RssAnon", 0) for pid in pids))
            time.sleep(0.01)
        if run.returncode:
            log.seek(0)
            raise InputError(f"{command[4:7]} failed: {log.read()[-800:]}")
    return max(samples), int(statistics.median(samples[len(samples) // 2 :]))


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:  # it has ended
        return []


def report(rows: Sequence[Row]) -> str:
    heads = ("processes", "loss, last step", "difference", "peak, MB", "training, MB", "tokens/s")  # fmt: skip
    lines = [
        (
            "1" if row.kind == "one" else f"2, {row.kind}", f"{row.losses[-1]:.4f}",
            f"{row.difference:.4f}", f"{row.peak_mb:.0f}", f"{row.steady_mb:.0f}",
            f"{row.tokens_per_second:.0f}",
        )
        for row in rows
    ]  # fmt: skip
    return tables.table(heads, lines)


def main(words: Sequence[str] | None = None) -> None:
    import argparse

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and results")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--micro-batch-size", type=int, default=2)
    parser.add_argument("--kinds", default=",".join(KINDS), help="comma-separated, one first")
    options = parser.parse_args(words)
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    if not (options.out / "model").is_dir():
        make_model(options.out / "model", SHAPE)
    file = options.out / "rows.json"
    rows = [Row(**row) for row in json.loads(file.read_text())] if file.is_file() else []
    for kind in options.kinds.split(","):
        if any(row.kind == kind for row in rows):
            continue
        try:
            rows.append(
                measure(
                    kind, options, options.out / "model" / "base", rows[0].losses if rows else []
                )
            )
        except EdgeftError as error:
            sys.exit(f"{kind}: {error}")
        file.write_text(json.dumps([asdict(row) for row in rows], indent=1))
        print(f"{kind}: {rows[-1]}", file=sys.stderr, flush=True)
    print(report(rows))
    print(
        json.dumps({"machine": machine.describe_machine(), "rows": [asdict(row) for row in rows]})
    )


if __name__ == "__main__":
    main()
