"""edgeft's one pass against the usual chain, on the same random model and adapter, in one run.

    python -m edgeft.benchmarks.chain --llama-cpp ~/llama.cpp --shape qwen2-0.5b

The usual chain is peft's merge into a folder, llama.cpp's convert_hf_to_gguf.py to f16 and
llama-quantize (its library function, which llama-cpp-python carries): three processes, three models
on disk. edgeft's is one `merge-export`, once without and once with the check against the live
adapter, which the chain has not. Each step runs in a process of its own; the rounds alternate.

Per arm: wall seconds; bytes of the model files that its steps read and wrote; the largest anonymous
memory (RssAnon, sampled every 10 ms) of any step. Most of a
K-quant's time is ggml's quantizer, which both call. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeft import stage
from edgeft.checkpoint import Array, Spec, write_safetensors
from edgeft.errors import InputError

SHAPES: dict[str, dict[str, int]] = {
    "qwen2-tiny": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
                   "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512},
    "qwen2-0.5b": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
                   "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936},
    "qwen2-1.5b": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
                   "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936},
}  # fmt: skip
"""real shapes of Qwen2 (https://huggingface.co/Qwen/Qwen2-0.5B/blob/main/config.json)"""

RANK = 16
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

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


@dataclass
class Step:
    seconds: float
    anonymous: int
    """bytes"""


def run(command: list[str]) -> Step:
    """Run a process to its end and watch its memory; InputError where it fails."""
    started, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as log:
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True)
        while child.poll() is None:
            peak = max(peak, _anonymous(child.pid))
            time.sleep(0.01)
        seconds = time.perf_counter() - started
        if child.returncode:
            log.seek(0)
            raise InputError(f"{command[:4]} failed: {log.read()[-800:]}")
    return Step(seconds, peak)


def _anonymous(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def usual(work: Path, llama_cpp: Path, quant: str, threads: int) -> dict[str, Any]:
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
    found = _arm(steps, read, written)
    shutil.rmtree(merged)
    f16.unlink()
    return found


def single(work: Path, quant: str, threads: int, live: bool) -> dict[str, Any]:
    out = work / "edgeft"
    command = [sys.executable, "-P", "-m", "edgeft", "merge-export", "--adapter",
               str(work / "adapter"), "--base", str(work / "base"), "--out", str(out), "--quant",
               quant, "--merge-base", "w16", "--threads", str(threads),
               "--live" if live else "--no-live"]  # fmt: skip
    step = run(command)
    base, adapter = work / "base", work / "adapter"
    # Base and adapter are hashed for the manifest, the file is hashed and opened for its checks.
    read = (size(base) + size(adapter)) * (3 if live else 2) + 2 * size(out)
    found = _arm([step], read, size(out))
    shutil.rmtree(out)
    return found


def _arm(steps: list[Step], read: int, written: int) -> dict[str, Any]:
    return {
        "seconds": sum(step.seconds for step in steps),
        "steps": [round(step.seconds, 2) for step in steps],
        "anonymous": max(step.anonymous for step in steps),
        "read": read,
        "written": written,
    }


def size(path: Path) -> int:
    """Bytes of a model file, or of a folder's."""
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.iterdir() if p.suffix in (".safetensors", ".gguf"))


def make_model(work: Path, shape: dict[str, int], seed: int = 0) -> None:
    """Random weights in bfloat16 and a random adapter, streamed: no torch, no big memory."""
    base, adapter = work / "base", work / "adapter"
    base.mkdir(parents=True)
    adapter.mkdir()
    draw = np.random.default_rng(seed)
    hidden, ffn = shape["hidden_size"], shape["intermediate_size"]
    head = hidden // shape["num_attention_heads"]
    kv = head * shape["num_key_value_heads"]
    widths = {"q_proj": (hidden, hidden), "k_proj": (kv, hidden), "v_proj": (kv, hidden),
              "o_proj": (hidden, hidden), "gate_proj": (ffn, hidden), "up_proj": (ffn, hidden),
              "down_proj": (hidden, ffn)}  # fmt: skip
    weights: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (shape["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    deltas: dict[str, tuple[int, ...]] = {}
    for i in range(shape["num_hidden_layers"]):
        for name, (rows, columns) in widths.items():
            block = "self_attn" if name in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
            module = f"model.layers.{i}.{block}.{name}"
            weights[f"{module}.weight"] = (rows, columns)
            if name in ("q_proj", "k_proj", "v_proj"):
                weights[f"{module}.bias"] = (rows,)
            deltas[f"base_model.model.{module}.lora_A.weight"] = (RANK, columns)
            deltas[f"base_model.model.{module}.lora_B.weight"] = (rows, RANK)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{i}.{name}.weight"] = (hidden,)

    def values(sizes: tuple[int, ...]) -> Iterator[Array]:
        step = max(1, (1 << 22) // math.prod(sizes[1:]))
        for start in range(0, sizes[0], step):
            rows = min(step, sizes[0] - start)
            yield draw.standard_normal((rows, *sizes[1:]), np.float32) * np.float32(0.02)

    for folder, name, tensors, dtype in (
        (base, "model.safetensors", weights, "BF16"),
        (adapter, "adapter_model.safetensors", deltas, "F32"),
    ):
        specs = [Spec(key, dtype, sizes) for key, sizes in tensors.items()]
        write_safetensors(folder / name, specs, map(values, tensors.values()))
    config = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **shape,
              "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
              "tie_word_embeddings": True, "torch_dtype": "bfloat16", "hidden_act": "silu",
              "eos_token_id": 0, "bos_token_id": 0}  # fmt: skip
    _json(base / "config.json", config)
    _json(adapter / "adapter_config.json", {
        "peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": list(TARGETS),
        "base_model_name_or_path": str(base), "task_type": "CAUSAL_LM"})  # fmt: skip
    make_tokenizer(base, shape["vocab_size"])


def make_tokenizer(folder: Path, size: int) -> None:
    """Byte-level BPE with the pre-tokenizer of Qwen2, learned on the prompts that are asked."""
    from tokenizers import Tokenizer, trainers

    from edgeft import models
    from edgeft.benchmarks.parity import PROMPTS, TORTURE
    from edgeft.template import ALPACA

    pre = models.pretokenizer_json(models.pretokenizers()["qwen2"])
    empty = {"version": "1.0", "added_tokens": [], "pre_tokenizer": pre,
             "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                         "use_regex": True},
             "model": {"type": "BPE", "vocab": {}, "merges": []}}  # fmt: skip
    tokenizer = Tokenizer.from_str(json.dumps(empty))
    trainer = trainers.BpeTrainer(
        vocab_size=min(size, 2000), special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=_letters(),
    )  # fmt: skip
    tokenizer.train_from_iterator([*PROMPTS, *TORTURE, ALPACA], trainer)
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    _json(folder / "tokenizer_config.json", {
        "tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|endoftext|>",
        "bos_token": "<|endoftext|>"})  # fmt: skip


def _letters() -> list[str]:
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(other)) for byte in range(256)]


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False))


def compare(arms: dict[str, Callable[[], dict[str, Any]]], rounds: int) -> dict[str, Any]:
    """Every arm once per round, in turn; medians, and the spread of the seconds."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, arm in arms.items():
            runs[name].append(arm())
    found = {}
    for name, results in runs.items():
        seconds = [result["seconds"] for result in results]
        found[name] = results[0] | {
            "seconds": round(statistics.median(seconds), 2),
            "spread": round(max(seconds) - min(seconds), 2),
            "anonymous": max(result["anonymous"] for result in results),
        }
    return found


def main() -> None:
    from edgeft import report

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
            "usual chain": lambda: usual(work, options.llama_cpp, quant, threads),
            "edgeft": lambda: single(work, quant, threads, live=False),
            "edgeft + live check": lambda: single(work, quant, threads, live=True),
        }
        if options.no_live:
            del arms["edgeft + live check"]
        found = compare(arms, options.rounds)
    rows = [
        [name, f"{arm['seconds']:.1f} s ± {arm['spread'] / 2:.1f}", stage.human(arm["read"]),
         stage.human(arm["written"]), stage.human(arm["anonymous"])]
        for name, arm in found.items()
    ]  # fmt: skip
    print(report.machine())
    print(report.table([f"{options.shape} -> {quant}", "wall", "read", "written", "memory"], rows))
    chain = found["usual chain"]
    ratio = {
        name: {key: round(chain[key] / arm[key], 2) for key in ("seconds", "anonymous", "written")}
        | {"io": round((chain["read"] + chain["written"]) / (arm["read"] + arm["written"]), 2)}
        for name, arm in found.items()
        if name != "usual chain"
    }
    print(json.dumps({"shape": options.shape, "quant": quant, "arms": found, "ratio": ratio}))


if __name__ == "__main__":
    main()
