"""One model and adapter -> time, memory and disk of edgeft's export and of the usual chain.

    python -m edgeft.benchmarks.studies.one_pass --llama-cpp ~/llama.cpp --shape qwen2-0.5b

The usual chain is peft's merge into a folder, llama.cpp's convert_hf_to_gguf.py to f16, and
llama-quantize (its library function, which llama-cpp-python carries): three processes, three models on
disk. edgeft's arm is one `merge-export`; a further arm adds the check against the live adapter, which
the chain does not have. Each step runs in a process of its own, and the rounds alternate.

Per arm: wall seconds; bytes of the model files that its steps read and wrote; the largest anonymous
memory (RssAnon, sampled every 10 ms) of any step. Most of a K-quant's time is ggml's quantizer, which
both arms call. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeft import files
from edgeft.benchmarks.studies.measured_process import Step, run
from edgeft.benchmarks.studies.random_model import SHAPES, make_model, size

MERGE = """
import sys, torch, transformers, peft
base, adapter, out = sys.argv[1:]
model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
model = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
model.save_pretrained(out)
transformers.AutoTokenizer.from_pretrained(base).save_pretrained(out)
"""
CONVERT = """
import runpy, sys
script = sys.argv[1]
sys.path.insert(0, script.rpartition("/")[0])
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen2"  # known by hash otherwise
sys.argv = sys.argv[1:]
runpy.run_path(script, run_name="__main__")
"""
QUANTIZE = """
import sys, llama_cpp
source, target, ftype, threads = sys.argv[1:]
params = llama_cpp.llama_model_quantize_default_params()
params.ftype, params.nthread = int(ftype), int(threads)
sys.exit(llama_cpp.llama_model_quantize(source.encode(), target.encode(), params))
"""
FILE_TYPE = {"q4_k_m": 15, "q8_0": 7, "q4_0": 2}
"""quantization -> llama.cpp's LLAMA_FTYPE"""


def run_chain(work: Path, llama_cpp: Path, quant: str, threads: int) -> dict[str, Any]:
    """The usual chain; removes the files that it wrote between its steps."""
    base, adapter = work / "base", work / "adapter"
    merged, f16, out = work / "merged", work / "f16.gguf", work / f"usual-{quant}.gguf"
    python = [sys.executable, "-P"]
    steps = [
        run([*python, "-c", MERGE, str(base), str(adapter), str(merged)]),
        run([*python, "-c", CONVERT, str(llama_cpp / "convert_hf_to_gguf.py"), str(merged),
             "--outfile", str(f16), "--outtype", "f16"]),
        run([*python, "-c", QUANTIZE, str(f16), str(out), str(FILE_TYPE[quant]), str(threads)]),
    ]  # fmt: skip
    read = size(base) + size(adapter) + size(merged) + size(f16)
    written = size(merged) + size(f16) + size(out)
    result = _arm(steps, read, written)
    shutil.rmtree(merged)
    f16.unlink()
    return result


def run_edgeft(work: Path, quant: str, threads: int, live: bool) -> dict[str, Any]:
    """One `merge-export`; `live` adds the check against the live adapter."""
    out = work / "edgeft"
    command = [sys.executable, "-P", "-m", "edgeft", "merge-export", "--adapter",
               str(work / "adapter"), "--base", str(work / "base"), "--out", str(out), "--quant",
               quant, "--base-precision", "stored", "--threads", str(threads),
               "--compare-live" if live else "--no-compare-live"]  # fmt: skip
    step = run(command)
    base, adapter = work / "base", work / "adapter"
    # Base and adapter are also hashed for the manifest; the file is hashed, and opened for its checks.
    read = (size(base) + size(adapter)) * (3 if live else 2) + 2 * size(out)
    result = _arm([step], read, size(out))
    shutil.rmtree(out)
    return result


def _arm(steps: list[Step], read: int, written: int) -> dict[str, Any]:
    return {
        "seconds": sum(step.seconds for step in steps),
        "steps": [round(step.seconds, 2) for step in steps],
        "anonymous": max(step.anonymous for step in steps),
        "read": read,
        "written": written,
    }


def alternate(arms: dict[str, Callable[[], dict[str, Any]]], rounds: int) -> dict[str, Any]:
    """Run every arm once per round, in turn: medians, and the spread of the seconds."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, arm in arms.items():
            runs[name].append(arm())
    medians = {}
    for name, results in runs.items():
        seconds = [result["seconds"] for result in results]
        medians[name] = results[0] | {
            "seconds": round(statistics.median(seconds), 2),
            "spread": round(max(seconds) - min(seconds), 2),
            "anonymous": max(result["anonymous"] for result in results),
        }
    return medians


def main() -> None:
    from edgeft import machine
    from edgeft.report import tables

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llama-cpp", type=Path, required=True, help="a checkout of llama.cpp")
    parser.add_argument("--shape", choices=SHAPES, default="qwen2-0.5b")
    parser.add_argument("--quant", choices=FILE_TYPE, default="q4_k_m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-live", action="store_true", help="leave the third arm out")
    parser.add_argument("--work", type=Path, default=None, help="folder for the models")
    options = parser.parse_args()
    if not (options.llama_cpp / "convert_hf_to_gguf.py").is_file():
        sys.exit(f"no convert_hf_to_gguf.py in {options.llama_cpp}")
    with tempfile.TemporaryDirectory(dir=options.work, prefix="chain-") as folder:
        work = Path(folder)
        make_model(work, SHAPES[options.shape])
        quant, threads = options.quant, options.threads
        arms: dict[str, Callable[[], dict[str, Any]]] = {
            "usual chain": lambda: run_chain(work, options.llama_cpp, quant, threads),
            "edgeft": lambda: run_edgeft(work, quant, threads, live=False),
            "edgeft + live check": lambda: run_edgeft(work, quant, threads, live=True),
        }
        if options.no_live:
            del arms["edgeft + live check"]
        results = alternate(arms, options.rounds)
    rows = [
        [name, f"{arm['seconds']:.1f} s ± {arm['spread'] / 2:.1f}", files.format_bytes(arm["read"]),
         files.format_bytes(arm["written"]), files.format_bytes(arm["anonymous"])]
        for name, arm in results.items()
    ]  # fmt: skip
    print(machine.describe_machine())
    print(tables.table([f"{options.shape} -> {quant}", "wall", "read", "written", "memory"], rows))
    chain = results["usual chain"]
    ratio = {
        name: {key: round(chain[key] / arm[key], 2) for key in ("seconds", "anonymous", "written")}
        | {"io": round((chain["read"] + chain["written"]) / (arm["read"] + arm["written"]), 2)}
        for name, arm in results.items()
        if name != "usual chain"
    }
    print(json.dumps({"shape": options.shape, "quant": quant, "arms": results, "ratio": ratio}))


if __name__ == "__main__":
    main()
