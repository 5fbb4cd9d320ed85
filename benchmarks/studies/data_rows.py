"""Half a million rows -> CPU time and peak memory of `edgeft data check`, `split` and `mix`, beside fewer rows.

    python -m edgeft.benchmarks.studies.data_rows --rows 50000,500000 --steps check,split,mix

Each step runs in a process of its own, once for each number of rows: memory that does not grow with the rows
is the same in all. The rows are made from a word list; one in fifty has a fault. Prints
a Markdown table. CPU time, not wall time, so that other programs on the machine do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

WORDS = [f"{a}{b}" for a in ("ri", "sto", "la", "ga", "wi", "co", "en", "le", "wa", "ba", "ha", "pe")
         for b in ("ver", "ne", "mp", "rden", "nter", "pper", "gine", "tter", "gon", "sket")]  # fmt: skip
STEPS = {
    "check": ("check", "{rows}", "--against", "{few}"),
    "split": ("split", "{rows}", "--output", "{out}/split", "--test", "0.1"),
    "split, stratified": (
        "split", "{rows}", "--output", "{out}/strata", "--stratify", "tags", "--group", "user",
    ),
    "mix": ("mix", "{rows}=3", "{few}", "--replay", "{replay}", "--output", "{out}/mix.jsonl"),
    "clean": ("clean", "{rows}", "--output", "{out}/clean.jsonl"),
}  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """One process."""

    cpu_s: float
    peak_mib: float
    """largest resident set, pages of mapped files included"""


def made_rows(count: int, seed: int) -> Iterator[str]:
    """Rows of some 50 words."""
    rng = random.Random(seed)
    for i in range(count):
        question = "Where is the " + " ".join(rng.choices(WORDS, k=12)) + "?"
        answer = "It is by the " + " ".join(rng.choices(WORDS, k=35)) + "."
        if i % 50 == 49:
            answer = answer[:-1] + " of the"
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        yield json.dumps({"messages": turns, "tags": [f"task{i % 7}"], "user": f"u{i // 3}"}) + "\n"


def write_rows(path: Path, count: int, seed: int) -> Path:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(made_rows(count, seed))
    return path


def cost(arguments: list[str]) -> Cost:
    """Run an edgeft command; its CPU time and peak memory. RuntimeError where it fails."""
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "edgeft", "data", *arguments], stdout=log, stderr=log
        )
        _, status, usage = os.wait4(child.pid, 0)
        if os.waitstatus_to_exitcode(status) not in (0, 3):
            log.seek(0)
            raise RuntimeError(log.read().decode())
    return Cost(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="50000,500000")
    parser.add_argument("--steps", default=",".join(name for name in STEPS if "," not in name))
    options = parser.parse_args()
    print("| step | rows | file, MB | CPU time, s | rows/s | peak memory, MiB |")
    print("|---|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        paths = {
            "few": write_rows(root / "few.jsonl", 2000, 1),
            "replay": write_rows(root / "replay.jsonl", 5000, 2),
        }
        for count in map(int, options.rows.split(",")):
            paths["rows"] = write_rows(root / f"rows{count}.jsonl", count, 3)
            paths["out"] = root / f"out{count}"
            for name in (
                name for name in STEPS if name.partition(",")[0] in options.steps.split(",")
            ):
                found = cost([part.format(**paths) for part in STEPS[name]])
                size = paths["rows"].stat().st_size / 1e6
                print(f"| {name} | {count} | {size:.0f} | {found.cpu_s:.1f} | {count / found.cpu_s:.0f} | "
                      f"{found.peak_mib:.0f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
