"""The options of the release gate and of the search. The string after a field is its option's help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgeft.benchmarks.options import MIN_RETENTION

if TYPE_CHECKING:
    from edgeft.export.options import ExportOptions


@dataclass(frozen=True)
class GateOptions:
    """What is compared with what: the options of `edgeft ab`."""

    candidates: tuple[Path, ...]
    baseline: Path
    base: Path | None = None
    """The model before the fine-tune, asked with instructions, with and without examples: how much of
    the gain is left?"""
    shots: int = 4
    """Examples that the base is shown; 0 = none."""
    margin: float | None = None
    """Loss of accuracy that is still acceptable, as a share. Default: .05, from 400 items .03, from
    1500 items .02."""
    min_retention: float = MIN_RETENTION
    """Share of the fine-tune's gain that should be left."""
    early_stop: bool = False
    """Stop as soon as the items so far decide."""
    refusals: Path | None = None
    """CSV with prompt and label (safe, unsafe), as XSTest's: refusals must pass, too."""
    general: str | None = None
    """Ask base and candidates a general slice too, and report what was forgotten: a data file, or the
    embedded suite without a value (needs --base)."""
    general_scorer: str | None = None
    """Scorer of --general, as --scorer. Default: the suite's, else exact."""
    max_forgotten: float | None = None
    """Loss on --general that is acceptable, as a share, such as 0.1: the verdict then holds the candidates
    to it. Default: it is reported only."""
    speed: bool = False
    """Measure speed and memory, too."""
    fidelity: bool = False
    """Measure the KL divergence from the baseline on the items' answers, too."""
    repeat_baseline: bool = False
    """Ask the baseline again with another number of threads: what differs by chance alone."""


@dataclass(frozen=True)
class BaselineOptions:
    """Which bases are asked, and how: the options of `edgeft baseline`."""

    base: tuple[str, ...]
    """Base model: a .gguf, a Hugging Face folder, a hub id or an embedded one such as smollm2-135m;
    repeatable. What is no .gguf is exported to f16 once, into the cache."""
    validation_data: Path | None = None
    """Rows to ask: the validation split. Default: the suite's, else the rows of --items."""
    instructions: Path | None = None
    """Text file with the system prompt. Default: the suite's, else none."""
    shots: tuple[int, ...] = (0, 4, 8)
    """Worked examples before each item; several numbers by commas, 0 = instructions only."""
    pick: Literal["both", "fixed", "similar", "embeddings"] = "both"
    """How examples are picked: fixed = the same for all items, similar = those most like the item by
    their words (BM25), embeddings = by the base's own states, both = fixed and similar."""
    target: float = 0.9
    """Score that the task needs, as a share."""


@dataclass(frozen=True)
class SearchOptions:
    """What is tried and what must fit: the options of `edgeft search`."""

    export: ExportOptions
    """`quants` empty: those of `edgeft.release.search.LINEUP`"""
    margin: float | None = None
    """Loss of accuracy that is still acceptable, as for ab."""
    early_stop: bool = False
    """Stop as soon as the items so far decide."""
    max_size: int | None = None
    """Bytes on disk at most, such as 200M."""
    max_memory: int | None = None
    """Bytes of memory at the peak at most, mapped weights included, such as 1.5G."""
    min_tps: float | None = None
    """Tokens per second of decoding at least."""
    jobs: int = 1
    """Candidates that answer at a time; with --ray, 1 = all."""
    ray: str | None = None
    """Address of a Ray cluster where the candidates answer; local starts one."""
