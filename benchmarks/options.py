"""The options of measurements. The string after a field is the help of its option."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

MIN_RETENTION = 0.9
"""share of the fine-tune's gain that should be left"""


@dataclass(frozen=True)
class EvalOptions:
    """How artifacts are asked: the options that bench, ab and search share."""

    items: str | None = None
    """Embedded suite (smart_home) or a data file: JSONL, JSON, CSV or Parquet."""
    bad_rows: Literal["stop", "skip"] = "stop"
    """What a row of data that cannot be asked does: stop = an error that lists the first ten, skip = it
    is left out and counted."""
    few_shot_data: Path | None = None
    """File that few-shot examples are drawn from. Default: the suite's."""
    scorer: str | None = None
    """exact, json, numeric, regex, contains, choice, tool-call, chrf, rouge-l, or a Python file with
    score(reply, reference). Several tasks at once: exact,TAG=numeric. Default: the suite's, else exact."""
    limit: int | None = None
    """Only the first so many items."""
    max_tokens: int | None = None
    """Tokens of an answer at most. Default: the suite's, else 256."""
    threads: int | None = None
    """CPU threads. Default: all cores."""
    no_cache: bool = False
    """Answer again where a score is in the cache."""


@dataclass(frozen=True)
class Effort:
    """How long is measured."""

    runs: int = 20
    """Runs of each workload at most."""
    min_runs: int = 5
    """Runs of each workload, even if the seconds have passed."""
    seconds: float = 60.0
    """Seconds for each workload, all artifacts together: after that no further run begins (at least 5
    runs are made, or --runs)."""
    warmup: int = 2
    """Runs before those that are timed."""
    noise: float = 0.05
    """Coefficient of variation above which nothing is compared."""


EFFORT = Effort()


@dataclass(frozen=True)
class BenchOptions:
    """What is measured: the options of `edgeft bench`."""

    artifacts: tuple[Path, ...]
    baseline: Path | None = None
    """The fp16 model that all are compared with, or the file that --save-baseline made of one."""
    speed: bool = True
    """Measure speed and memory."""
    sweep: bool = False
    """Measure 18 workloads: 3 prompt lengths x 2 answer lengths x 1, 2 and 4 clients."""
    via: Literal["runtime", "server"] = "runtime"
    """Where latency is measured: runtime = in the process, server = as the clients of edgeft serve see
    it, over HTTP."""
    effort: Effort = EFFORT
    find_memory_limit: bool = False
    """Find the smallest memory limit that keeps 95 % of the speed (needs the right to make cgroups)."""
    text: Path | None = None
    """Plain text: perplexity, and KL divergence from --baseline."""
    chunks: int = 40
    """Chunks of 512 tokens that are read of --text."""
    chats: Path | None = None
    """Conversations: the same as for --text, on their answers, under the model's template."""
    save_baseline: Path | None = None
    """File (.logprobs) for the baseline's distributions, which a later --baseline can name."""
    shots: int | None = None
    """Ask as a base model is asked: with instructions and so many examples."""
