"""The options of `edgeft data check`, `clean`, `split` and `mix`. The string after a field is the help of its option."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class CheckOptions:
    """What is checked, and against what: the options of `edgeft data check`."""

    data: tuple[Path, ...]
    """Files or folders of rows, or data sets of the hub as owner/name:config."""
    against: tuple[Path, ...] = ()
    """Files that must have no question in common with the data: validation and test splits."""
    base: Path | None = None
    """Base model; its tokenizer counts tokens and its chat template renders. Without one, neither is
    checked."""
    cutoff_length: int = 512
    """Tokens of an example at most; training leaves longer ones out."""
    columns: tuple[str, ...] = ()
    """Columns to read, comma-separated, as prompt=question,answer=reply."""
    near: float = 0.8
    """Jaccard similarity of two texts, in runs of three words, from which on they are near duplicates;
    0 = do not look for any."""
    ignore: tuple[str, ...] = ()
    """Kinds of findings to leave out, comma-separated."""
    test_sets: tuple[Path, ...] = ()
    """Test files of the embedded suites, which no data may hold."""


@dataclass(frozen=True)
class CleanOptions:
    """What is cleaned and by which rules: the options of `edgeft data clean`."""

    data: tuple[Path, ...]
    """Files or folders of rows, or data sets of the hub as owner/name:config."""
    output: Path
    """JSONL file to write."""
    rules: tuple[str, ...] = ("default",)
    """Rules, comma-separated: default, fixes, and every kind of `edgeft data check` that a row shows."""
    against: tuple[Path, ...] = ()
    """Files whose questions the data must not hold, for the rules leak and near-leak."""
    columns: tuple[str, ...] = ()
    """Columns to read, comma-separated, as prompt=question,answer=reply."""
    near: float = 0.8
    """Jaccard similarity of two texts, in runs of three words, from which on they are near duplicates."""


@dataclass(frozen=True)
class SplitOptions:
    """How data is split: the options of `edgeft data split`."""

    data: tuple[Path, ...]
    """Files or folders of rows, or data sets of the hub as owner/name:config."""
    output: Path
    """Folder for train.jsonl, validation.jsonl and test.jsonl."""
    validation: float = 0.1
    """Share of the rows for validation; 0 = none."""
    test: float = 0.0
    """Share of the rows for the test; 0 = none."""
    group: str = "question"
    """What keeps rows together in one split: question = rows that ask the same, row = equal rows only, or
    the name of a column."""
    stratify: str = ""
    """What has the same shares in every split: answer, tags, or the name of a column. Without it, rows are
    placed by their hash alone."""
    columns: tuple[str, ...] = ()
    """Columns to read, comma-separated, as prompt=question,answer=reply."""
    bad_rows: Literal["stop", "skip"] = "stop"
    """What a row that cannot be learned does: stop = an error lists the first ten, skip = it is left out and
    counted."""
    seed: int = 0
    """Seed of the hash that places the rows."""


@dataclass(frozen=True)
class MixOptions:
    """What is mixed in which shares: the options of `edgeft data mix`."""

    data: tuple[str, ...]
    """Files or folders of rows, or data sets of the hub, each with its weight as FILE=WEIGHT; without one the
    weight is 1."""
    output: Path
    """JSONL file to write."""
    temperature: float | None = None
    """In place of weights: shares in proportion to rows ** (1 / temperature); 1 = as the files are, more =
    small files count more."""
    replay: tuple[Path, ...] = ()
    """Files of general data to mix in against forgetting."""
    replay_share: float = 0.1
    """Share of the rows of the mix that --replay gives."""
    rows: int | None = None
    """Rows of the mix. Default: as many as there are without a row twice."""
    tag: bool = True
    """Add the name of its file to the tags of each row, so that the gate reports each task apart."""
    bad_rows: Literal["stop", "skip"] = "stop"
    """What a row that cannot be learned does: stop = an error lists the first ten, skip = it is left out and
    counted."""
    seed: int = 0
    """Seed of the choice of rows."""
