"""A model -> seconds and memory of GPTQ, block by block, beside the time of its arithmetic.

    python -m edgeft.benchmarks.studies.gptq_cost --base smollm2-135m --shape qwen2-0.5b

The bound is the arithmetic of GPTQ as it is usually computed, divided by the speed of a large float32
matrix product (`edgeft.cpu_products`) measured in the same run: every token passes every linear layer twice (to record the
layer's inputs, and with the quantized weights), and half of each input's outer product is computed.
edgeft keeps the inputs of the last layer of attention and feed-forward part, and passes most layers once.
Attention, norms, rounding and repeated work make up the rest. Ends with one JSON line.
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

import numpy as np

from edgeft import files
from edgeft.base.resolve import resolve_base
from edgeft.benchmarks.studies.measured_process import run
from edgeft.benchmarks.studies.random_model import SHAPES, make_model
from edgeft.gptq.linear_weights import stage_of
from edgeft.gptq.quantize import Calibration, linears, quantize_blocks
from edgeft.gptq.solver import UniformGrid
from edgeft.merge.view import Merged, open_merged

CHAT_TOKENS = 128
"""tokens of a calibration conversation, as in short chats"""

QUANTIZE = (
    "import sys; from edgeft.benchmarks.studies.gptq_cost import quantize_random_tokens as q; "
    "q(*sys.argv[1:3], *map(int, sys.argv[3:]))"
)


def quantize_random_tokens(base: str, work: str, tokens: int, threads: int) -> None:
    """Quantize a model to 4 bits on random tokens; `work` gets a file for each block."""
    merged, rng = open_merged(Path(base), None), np.random.default_rng(0)
    shape = (tokens // CHAT_TOKENS, CHAT_TOKENS)
    sequences = rng.integers(0, merged.vocabulary, shape).tolist()
    grids = dict.fromkeys(linears(merged), UniformGrid(4, 32, True))
    quantize_blocks(merged, grids, Calibration(sequences, Path(work)), threads)


def cost(base: Path, tokens: int, threads: int) -> dict[str, Any]:
    """Quantize a model in a process of its own and time its blocks by the files that they leave."""
    merged = open_merged(base, None)
    with tempfile.TemporaryDirectory(prefix="gptq-") as folder:
        command = [sys.executable, "-P", "-c", QUANTIZE, str(base), folder]
        step = run([*command, *map(str, (tokens, threads))])
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
    """Operations per token of the bound above; a multiplication and an addition count as two."""
    linear, inputs = 0, {}
    for name in linears(merged):
        rows, columns = merged.shapes[name]
        linear += 2 * rows * columns
        layer = name.split(".")[2]
        inputs[layer, stage_of(merged.card, name)] = columns
    return 2 * linear + sum(columns**2 for columns in inputs.values())


def matmul_speed(threads: int) -> float:
    """Operations per second of a 2048 x 2048 float32 matrix product, the best of 8."""
    import torch

    from edgeft.cpu_products import product

    torch.set_num_threads(threads)
    size = 2048
    a, b = torch.rand(size, size), torch.rand(size, size)
    seconds = []
    for _ in range(8):
        started = time.perf_counter()
        product(a, b)
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
    costs: dict[str, dict[str, Any]] = {}
    speed = matmul_speed(options.threads)
    with tempfile.TemporaryDirectory(prefix="gptq-") as folder:
        for name in options.base:
            costs[name] = cost(resolve_base(name), options.tokens, options.threads)
        for name in options.shape:
            make_model(Path(folder) / name, SHAPES[name])
            costs[name] = cost(Path(folder) / name / "base", options.tokens, options.threads)
    for entry in costs.values():
        entry["bound"] = round(entry["operations"] / speed, 1)
        entry["ratio"] = round(entry["seconds"] / entry["bound"], 2)
    rows = [
        [name, f"{entry['weights'] / 1e6:.0f} M", f"{entry['seconds']:.0f} s",
         f"{entry['block']:.1f} s ± {entry['block_spread'] / 2:.1f}",
         files.format_bytes(entry["anonymous"]), f"{entry['bound']:.0f} s", f"{entry['ratio']:.2f}"]
        for name, entry in costs.items()
    ]  # fmt: skip
    head = ["model", "quantized", "wall", "per block", "peak memory", "bound", "ratio"]
    print(f"{machine.describe_machine()}, {speed / 1e9:.0f} GFLOP/s")
    print(tables.table(head, rows))
    print(json.dumps({"tokens": options.tokens, "peak": speed, "models": costs}))


if __name__ == "__main__":
    main()
