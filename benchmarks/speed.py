"""Speed and memory of one artifact, measured in a process that does nothing else.

    python -m edgeft.benchmarks.speed q4_k_m.gguf --threads 2       # one JSON line
    speed, memory = measure(Path("q4_k_m.gguf"))                    # the same, in a child process

Prefill is bound by arithmetic, decode by reading every weight once per token. TTFT includes
tokenization, the chat template and one decoding step; each run has a prompt of its own, so that no
cache of a former one helps. Medians of `RUNS` runs after one warm-up.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from edgeft.errors import EdgeftError
from edgeft.formats import format_of, load
from edgeft.records import Limits, Memory, Message, Speed
from edgeft.runtimes import Runtime, open_runtime

PROMPT_TOKENS = 256
NEW_TOKENS = 64
RUNS = 5
WORDS = "the cold river carried small boats past old houses while two children counted them "


def measure(artifact: Path, threads: int | None = None) -> tuple[Speed, Memory]:
    """Run this module in a child process and read its line."""
    row = format_of(artifact)
    if row.prepare:  # once, and not while the clock runs
        load(row.prepare)(artifact, threads)
    command = [sys.executable, "-P", "-m", "edgeft.benchmarks.speed", str(artifact)]
    if threads:
        command += ["--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise EdgeftError(f"cannot measure {artifact}: {reason}")
    raw = json.loads(done.stdout.splitlines()[-1])
    return Speed(**raw["speed"]), Memory(**raw["memory"])


def measure_here(artifact: Path, threads: int | None = None) -> tuple[Speed, Memory]:
    """Measure in this process; its peak memory counts everything that it ever held."""
    started = time.perf_counter()
    with open_runtime(artifact, threads=threads, context=PROMPT_TOKENS + NEW_TOKENS + 64) as model:
        load = time.perf_counter() - started
        _run(model, 0)
        runs = [_run(model, i + 1) for i in range(RUNS)]
        memory = Memory(peak=_status("VmHWM"), anonymous=_status("RssAnon"))
    ttft, prefill, decode = (statistics.median(column) for column in zip(*runs, strict=True))
    speed = Speed(
        load_s=round(load, 3),
        ttft_s=round(ttft, 4),
        prefill_tps=round(prefill, 1),
        decode_tps=round(decode, 1),
        prompt_tokens=PROMPT_TOKENS,
        new_tokens=NEW_TOKENS,
        runs=RUNS,
    )
    return speed, memory


def _run(model: Runtime, number: int) -> tuple[float, float, float]:
    """(TTFT in s, prefill tokens/s, decode tokens/s) for the prompt of this number."""
    started = time.perf_counter()
    text = model.chat.render([Message("user", f"{number} {WORDS * (PROMPT_TOKENS // 8)}")])
    ids = model.encode(f"{number} {text}")[:PROMPT_TOKENS]
    tokenized = time.perf_counter() - started
    limits = Limits(max_tokens=NEW_TOKENS, past_stops=True)
    times = [token.seconds for token in model.stream(ids, limits)]
    decode = (len(times) - 1) / (times[-1] - times[0])
    return tokenized + times[0], len(ids) / times[0], decode


def _status(key: str) -> int:
    """A field of /proc/self/status in bytes, 0 where the system has none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except FileNotFoundError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    try:
        speed, memory = measure_here(options.artifact, options.threads)
    except EdgeftError as error:
        sys.exit(str(error))
    line = {"speed": dataclasses.asdict(speed), "memory": dataclasses.asdict(memory)}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
