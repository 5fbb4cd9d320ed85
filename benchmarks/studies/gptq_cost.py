"""What GPTQ costs: seconds and memory, block by block, against what the arithmetic alone would take.

    python -m edgeft.benchmarks.studies.gptq_cost --base smollm2-135m --shape qwen2-0.5b

The bound is the work that no implementation can leave out, over the speed of a large float32 matrix
product measured beside it: every token goes through every linear layer twice (to see its inputs,
and with the quantized weights), and each input's outer product is half computed. Attention, norms,
the rounding itself and what is computed again are the rest. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from edgeft import files
from edgeft.base.resolve import resolve
from edgeft.benchmarks.studies.measured_process import run
from edgeft.benchmarks.studies.random_model import SHAPES, make_model
from edgeft.gptq.blocks import stage_of
from edgeft.gptq.quantize import linears
from edgeft.merge.view import Merged, open_merged

LENGTH = 128
"""tokens of a conversation: what short chats have"""

SOLVE = """
import sys
from pathlib import Path
import numpy as np
from edgeft.gptq import Calibration, UniformGrid, linears, quantize_blocks
from edgeft.merge import open_merged
base, work, tokens, length, threads = sys.argv[1:]
merged, draw = open_merged(Path(base), None), np.random.default_rng(0)
shape = (int(tokens) // int(length), int(length))
sequences = draw.integers(0, merged.vocabulary, shape).tolist()
grids = dict.fromkeys(linears(merged), UniformGrid(4, 32, True))
quantize_blocks(merged, grids, Calibration(sequences, Path(work)), int(threads))
"""


def cost(base: Path, tokens: int, threads: int) -> dict[str, Any]:
    """Quantize a model in a process of its own."""
    merged = open_merged(base, None)
    with tempfile.TemporaryDirectory(prefix="gptq-") as folder:
        command = [sys.executable, "-P", "-c", SOLVE, str(base), folder]
        step = run([*command, *map(str, (tokens, LENGTH, threads))])
        ends = sorted(path.stat().st_mtime for path in Path(folder).glob("block-*.safetensors"))
    blocks = [after - before for before, after in itertools.pairwise(ends)]
    weights = sum(math.prod(merged.shapes[name]) for name in linears(merged))
    return {
        "weights": weights,
        "seconds": round(step.seconds, 1),
        "block": round(statistics.median(blocks), 2),
        "block_spread": round(max(blocks) - min(blocks), 2),
        "anonymous": step.anonymous,
        "operations": operations(merged) * tokens,
    }


def operations(merged: Merged) -> int:
    """Of one token, a multiplication and an addition counted as two; see the module's docstring."""
    linear, inputs = 0, {}
    for name in linears(merged):
        rows, columns = merged.shapes[name]
        linear += 2 * rows * columns
        layer = name.split(".")[2]
        inputs[layer, stage_of(merged.card, name)] = columns
    return 2 * linear + sum(columns**2 for columns in inputs.values())


def peak(threads: int) -> float:
    """Operations a second of a product of matrices that fit no cache, the best of some."""
    import torch

    torch.set_num_threads(threads)
    size = 2048
    a, b = torch.rand(size, size), torch.rand(size, size)
    seconds = []
    for _ in range(8):
        started = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)


def main() -> None:
    from edgeft import machine
    from edgeft.report import tables

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", action="append", default=[], help="as for edgeft merge-export")
    parser.add_argument("--shape", action="append", default=[], choices=SHAPES, help="random ones")
    parser.add_argument("--tokens", type=int, default=65_536, help="to calibrate on")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    speed = peak(options.threads)
    with tempfile.TemporaryDirectory(prefix="gptq-") as folder:
        for name in options.base:
            found[name] = cost(resolve(name), options.tokens, options.threads)
        for name in options.shape:
            make_model(Path(folder) / name, SHAPES[name])
            found[name] = cost(Path(folder) / name / "base", options.tokens, options.threads)
    for entry in found.values():
        entry["bound"] = round(entry["operations"] / speed, 1)
        entry["ratio"] = round(entry["seconds"] / entry["bound"], 2)
    rows = [
        [name, f"{entry['weights'] / 1e6:.0f} M", f"{entry['seconds']:.0f} s",
         f"{entry['block']:.1f} s ± {entry['block_spread'] / 2:.1f}",
         files.format_bytes(entry["anonymous"]), f"{entry['bound']:.0f} s", f"{entry['ratio']:.2f}"]
        for name, entry in found.items()
    ]  # fmt: skip
    head = ["model", "quantized", "wall", "per block", "peak memory", "bound", "ratio"]
    print(f"{machine.machine()}, {speed / 1e9:.0f} GFLOP/s")
    print(tables.table(head, rows))
    print(json.dumps({"tokens": options.tokens, "peak": speed, "models": found}))


if __name__ == "__main__":
    main()
