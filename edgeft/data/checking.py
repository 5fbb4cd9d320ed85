"""Data files -> what is wrong with them before anything is trained on them (`DataReport`).

report = check(CheckOptions(data=(Path("train.jsonl"),), against=(Path("test.jsonl"),)))
report.findings[0].kind, report.findings[0].severity, report.findings[0].places
report.exit_code        # 3 where training on it would be a mistake

The files are read once, a row at a time. What a row shows by itself is in `row_faults`, what the whole
file shows in `set_faults`, equal and similar rows in `similar`; this module adds tokens and the rendering
of the chat template, and turns all of it into findings.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeft import __version__
from edgeft.data.columns import parse_columns
from edgeft.data.items import Item, read_compared, read_items
from edgeft.data.options import CheckOptions
from edgeft.data.row_faults import ROW_KINDS, Severity, excerpt
from edgeft.data.set_faults import (
    MAX_PLACES,
    SET_KINDS,
    Hits,
    Statistics,
    counts,
    same_kind_of_task,
)
from edgeft.data.similar import Pair, Prints, is_available
from edgeft.data.sources import data_files
from edgeft.data.tokens import Lengths, TokenCounter
from edgeft.errors import InputError, did_you_mean

EXIT_MISTAKE = 3
"""exit code where training on the data would be a mistake"""
MIN_ESCALATED_ROWS = 3
"""a share becomes an error from so many rows on"""
ORDER: dict[Severity, int] = {"error": 0, "warning": 1, "note": 2}


@dataclass(frozen=True)
class OtherKind:
    """A kind of fault that is found by comparing rows, or by rendering them."""

    name: str
    severity: Severity
    about: str
    error_share: float | None = None


OTHER_KINDS = (
    OtherKind("exact-duplicates", "warning", "rows that an earlier row equals", 0.3),
    OtherKind("near-duplicates", "warning", "rows that are similar to an earlier one (MinHash)"),
    OtherKind("conflicting-labels", "warning",
              "one prompt with different labels or JSON: the loss cannot fall", 0.01),
    OtherKind("several-answers", "note", "one prompt with different texts as its answer"),
    OtherKind("leak", "error", "questions that a file of --against has, too"),
    OtherKind("near-leak", "warning", "rows that are similar to one of --against (MinHash)"),
    OtherKind("test-leak", "error", "questions of an embedded test set"),
    OtherKind("near-test-leak", "warning", "rows that are similar to one of an embedded test set"),
    OtherKind("missing-class", "warning", "classes of --against that the data never shows"),
    OtherKind("too-long", "warning", "rows longer than the cutoff, which training leaves out", 0.2),
    OtherKind("refused-by-template", "error", "rows that the base's chat template refuses"),
    OtherKind("no-stop", "error", "answers after which the chat template writes no stop token"),
)  # fmt: skip
KINDS = {kind.name: kind for kind in (*ROW_KINDS, *SET_KINDS, *OTHER_KINDS)}
"""every kind of finding by name"""
LABEL_CHARS = 20
"""mean length of answers up to which two answers to one prompt contradict each other"""


@dataclass(frozen=True)
class Finding:
    """One fault, with the rows that show it."""

    kind: str
    severity: Severity
    message: str
    rows: int
    share: float
    """of all rows"""
    places: tuple[str, ...]
    """FILE:LINE of the first rows"""
    evidence: tuple[str, ...]
    """an excerpt or a few words for each place, or fewer"""


@dataclass(frozen=True)
class DataReport:
    """What `check` found."""

    files: tuple[str, ...]
    rows: int
    bad: int
    """rows that training cannot read"""
    findings: tuple[Finding, ...]
    """errors first, then by the number of rows"""
    not_checked: tuple[str, ...]
    """what was not looked at, with the reason"""
    columns: dict[str, int]
    """used keys of a row -> rows"""
    kinds: dict[str, int]
    """answer, preference or kto -> rows"""
    scripts: dict[str, int]
    classes: dict[str, int]
    """label -> rows, of a classification"""
    tags: dict[str, int]
    tokens: Lengths | None
    rendered: str
    """the first row as the chat template writes it, with the learned part marked; "" without a base"""
    edgeft: str = __version__

    @property
    def exit_code(self) -> int:
        return EXIT_MISTAKE if any(f.severity == "error" for f in self.findings) else 0

    def count(self, severity: Severity) -> int:
        """Findings of one severity."""
        return sum(finding.severity == severity for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"exit_code": self.exit_code}


@dataclass
class _Reading:
    """What one pass over the data left."""

    statistics: Statistics
    prints: Prints
    by_row: dict[str, Hits] = field(default_factory=dict)
    """name of a row kind -> rows that show it"""


def check(options: CheckOptions) -> DataReport:
    """Read the data once, the others once, and compare. InputError for files that cannot be read."""
    columns = parse_columns(options.columns)
    for name in options.ignore:
        if name not in KINDS:
            raise InputError(f"--ignore names no kind {name!r}", did_you_mean(name, KINDS))
    near = options.near > 0 and is_available()
    files = [file for path in options.data for file in data_files(path, "train")]
    others = {
        "": [file for path in options.against for file in data_files(path)],
        "test-": list(options.test_sets),
    }
    tokens = TokenCounter(options.base, options.cutoff_length) if options.base else None
    with contextlib.ExitStack() as stack:
        data = _Reading(Statistics(), stack.enter_context(Prints(near)))
        for item in read_items(files, columns):
            _add(data, item, tokens)
        if not data.statistics.rows and not data.statistics.bad:
            names = ", ".join(map(str, files))
            raise InputError(f"{names} holds no rows", "one JSON object per line, or a JSON array")
        findings = [*_row_findings(data), *_set_findings(data.statistics)]
        findings += _pair_findings(data, options.near if near else 0)
        for prefix, paths in others.items():
            for path in paths:
                other = _Reading(Statistics(), stack.enter_context(Prints(near)))
                for item in read_compared(path, columns):
                    other.statistics.add(item)
                    other.prints.add(item)
                findings += _leaks(data, other, prefix, path, options.near if near else 0)
    findings += _token_findings(tokens, data.statistics.rows) if tokens else []
    statistics = data.statistics
    kept = [finding for finding in findings if finding.kind not in options.ignore]
    return DataReport(
        files=tuple(map(str, files)),
        rows=_total(statistics),
        bad=sum(hits.rows for hits in statistics.bad.values()),
        findings=tuple(sorted(kept, key=lambda f: (ORDER[f.severity], -f.rows))),
        not_checked=tuple(_not_checked(options)),
        columns=counts(statistics.shapes),
        kinds=counts(statistics.kinds),
        scripts=counts(statistics.scripts),
        classes=counts(statistics.classes),
        tags=dict(statistics.tags.most_common(50)),
        tokens=tokens.lengths() if tokens else None,
        rendered=tokens.rendered if tokens else "",
    )


def _add(data: _Reading, item: Item, tokens: TokenCounter | None) -> None:
    if item.example is None:
        data.statistics.add_bad(item)
        return
    data.statistics.add(item)
    data.prints.add(item)
    for kind in ROW_KINDS:
        if evidence := kind.look(item):
            data.by_row.setdefault(kind.name, Hits()).add((item.file, item.line), evidence)
    if tokens:
        tokens.add(item)


def _total(statistics: Statistics) -> int:
    return statistics.rows + sum(hits.rows for hits in statistics.bad.values())


def _finding(name: str, hits: Hits, total: int, message: str = "",
             severity: Severity | None = None) -> Finding:  # fmt: skip
    """A finding of a kind; its severity rises to error where the kind says so."""
    kind = KINDS[name]
    share = hits.rows / total if total else 1.0
    worst = severity or kind.severity
    if kind.error_share is not None and share >= kind.error_share:
        worst = "error" if hits.rows >= MIN_ESCALATED_ROWS else worst
    return Finding(
        kind=name,
        severity=worst,
        message=message or kind.about,
        rows=hits.rows,
        share=share,
        places=tuple(f"{file}:{line}" for file, line in hits.places),
        evidence=tuple(hits.evidence),
    )


def _row_findings(data: _Reading) -> list[Finding]:
    total = _total(data.statistics)
    return [_finding(name, hits, total) for name, hits in data.by_row.items()]


def _set_findings(statistics: Statistics) -> list[Finding]:
    total = _total(statistics)
    return [
        _finding(kind.name, hit.hits, total, hit.message, hit.severity)
        for kind in SET_KINDS
        for hit in kind.look(statistics)
    ]


def _pair_findings(data: _Reading, near: float) -> Iterator[Finding]:
    prints, total = data.prints, _total(data.statistics)
    pairs = {"exact-duplicates": prints.duplicates()}
    if near:
        pairs["near-duplicates"] = prints.near_duplicates(near)
    statistics = data.statistics
    labels = statistics.classes or statistics.json_answers > 0.5 * statistics.rows
    labels = labels or statistics.chars <= LABEL_CHARS * statistics.rows
    # Two answers to one prompt are the substance of KTO rows and of preference pairs.
    if set(statistics.kinds) == {"answer"}:
        pairs["conflicting-labels" if labels else "several-answers"] = prints.conflicts()
    for name, found in pairs.items():
        if found:
            yield _finding(name, _hits(prints, prints, found), total)


def _hits(here: Prints, there: Prints, pairs: Sequence[Pair]) -> Hits:
    """The first places of pairs, each with the place of the other row."""
    shown = sorted(pairs)[:MAX_PLACES]
    others = [there.place(other) for _, other in shown]
    evidence = [f"as {file.name}:{line}" for file, line in others]
    return Hits(len(pairs), [here.place(i) for i, _ in shown], evidence)


def _leaks(
    data: _Reading, other: _Reading, prefix: str, path: Path, near: float
) -> Iterator[Finding]:
    """`prefix`: "" for --against, "test-" for an embedded test set."""
    total = _total(data.statistics)
    shared = data.prints.shared_questions(other.prints)
    if shared:
        message = f"{len(shared)} rows ask what {path} asks"
        yield _finding(f"{prefix}leak", _hits(data.prints, other.prints, shared), total, message)
    if near:
        known = {i for i, _ in shared}
        pairs = [p for p in data.prints.similar_rows(other.prints, near) if p[0] not in known]
        if pairs:
            message = f"{len(pairs)} rows are similar to rows of {path}"
            hits = _hits(data.prints, other.prints, pairs)
            yield _finding(f"near-{prefix}leak", hits, total, message)
    if not prefix:
        for label, hits in same_kind_of_task(data.statistics, other.statistics):
            message = f"the data never answers {excerpt(label)!r}, {path} does"
            yield _finding("missing-class", hits, total, message)


def _token_findings(tokens: TokenCounter, total: int) -> Iterator[Finding]:
    message = f"longer than the cutoff of {tokens.cutoff} tokens: training leaves them out"
    for name, hits, text in (
        ("too-long", tokens.too_long, message),
        ("refused-by-template", tokens.refused, ""),
        ("no-stop", tokens.without_stop, ""),
    ):
        if hits.rows:
            yield _finding(name, hits, total, text)


def _not_checked(options: CheckOptions) -> Iterable[str]:
    if options.base is None:
        yield "tokens, cutoff and chat template: no --base"
    if options.near <= 0:
        yield "near duplicates: --near 0"
    elif not is_available():
        yield "near duplicates: datasketch is not installed (pip install 'edgeft[data]')"
    if not options.against:
        yield "leakage between splits: no --against"
    yield from (f"{name}: --ignore" for name in options.ignore)
