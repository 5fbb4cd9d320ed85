"""Data files + rules -> a JSONL file without the rows and characters that the rules name (`clean`).

result = clean(CleanOptions(data=(Path("raw.jsonl"),), output=Path("clean.jsonl")))
result.counts       # {"strip-space": 12, "exact-duplicates": 3}

A fix changes the texts of a row, a drop leaves the row out. Rows keep their shape and their other keys.
"""

from __future__ import annotations

import dataclasses
import html
import re
import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from edgeft import store
from edgeft.data.columns import parse_columns
from edgeft.data.dataset import (
    KIND,
    check_jsonl,
    line_of,
    manifest_options,
    parents_of,
)
from edgeft.data.items import Item, read_compared, read_item, read_items
from edgeft.data.options import CleanOptions
from edgeft.data.row_faults import (
    BIDI_AND_INVISIBLE,
    CONTROL,
    PREFIX,
    ROW_KINDS,
    SECRETS,
    demojibaked,
    personal_spans,
)
from edgeft.data.similar import Pair, Prints
from edgeft.data.sources import data_files
from edgeft.errors import InputError, did_you_mean, require

Fix = Callable[[str], str]


def _stripped_controls(text: str) -> str:
    return BIDI_AND_INVISIBLE.sub("", CONTROL.sub("", text))


def _masked_persons(text: str) -> str:
    for start, end, what in sorted(personal_spans(text), reverse=True):
        text = f"{text[:start]}[{what}]{text[end:]}"
    return text


FIXES: dict[str, tuple[str, Fix]] = {
    "fix-mojibake": ("reads UTF-8 again that was read as Windows-1252", demojibaked),
    "strip-controls": ("removes control, zero-width and direction characters", _stripped_controls),
    "unix-lines": ("makes line ends \\n", lambda text: re.sub(r"\r\n?", "\n", text)),
    "strip-space": ("removes white space around each text", str.strip),
    "normalize": ("composes letters and accents (NFC)", lambda t: unicodedata.normalize("NFC", t)),
    "unescape-html": ("turns &amp; into &", html.unescape),
    "strip-speaker": ("removes 'Assistant:' in front of a text", lambda t: PREFIX.sub("", t, 1)
                      if PREFIX.match(t) else t),
    "mask-secrets": ("writes [secret] for keys and passwords", lambda t: SECRETS.sub("[secret]", t)),
    "mask-personal-data": ("writes [email address] and so on for personal data", _masked_persons),
}  # fmt: skip
"""rule -> (what it does, the function of a text), in the order of use"""
DROPS = {
    "bad-rows": "rows that training cannot read",
    **{kind.name: kind.about for kind in ROW_KINDS},
    "exact-duplicates": "rows that an earlier row equals",
    "near-duplicates": "rows that are similar to an earlier one (MinHash)",
    "leak": "rows that ask what a file of --against asks",
    "near-leak": "rows that are similar to one of --against (MinHash)",
}
"""rule -> the rows that it leaves out"""
DEFAULT_RULES = ("fix-mojibake", "strip-controls", "unix-lines", "strip-space", "bad-rows",
                 "exact-duplicates")  # fmt: skip
"""rules that lose nothing; with --against also leak"""


@dataclass(frozen=True)
class CleanResult:
    """What `clean` wrote and left out."""

    output: str
    rows: int
    """rows that were read"""
    kept: int
    counts: dict[str, int]
    """rule -> rows that it changed or left out; every rule that was asked for"""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def chosen_rules(names: Sequence[str], against: bool) -> list[str]:
    """The rules in the order of use, `default` replaced. InputError for one that does not exist."""
    expanded: list[str] = []
    for name in names:
        expanded += (
            [*DEFAULT_RULES, *(["leak"] if against else [])] if name == "default" else [name]
        )
    for name in expanded:
        if name not in FIXES and name not in DROPS:
            raise InputError(f"no rule {name!r}", did_you_mean(name, ["default", *FIXES, *DROPS]))
    if not against and (leaks := {"leak", "near-leak"} & set(expanded)):
        raise InputError(f"the rule {min(leaks)} needs a file to compare with", "--against FILE")
    if {"near-duplicates", "near-leak"} & set(expanded):
        require("datasketch", "data")
    return [name for name in (*FIXES, *DROPS) if name in expanded]


def clean(options: CleanOptions, overwrite: bool = False) -> CleanResult:
    """Write the cleaned rows. InputError where none is left, StaleError for a foreign output."""
    check_jsonl(options.output)
    columns = parse_columns(options.columns)
    rules = chosen_rules(options.rules, bool(options.against))
    files = [file for path in options.data for file in data_files(path, "train")]
    against = [file for path in options.against for file in data_files(path)]
    parents = parents_of("data", files) | (parents_of("against", against) if against else {})
    recorded = manifest_options(options, rules=rules)
    if done := store.find_complete(options.output, KIND, recorded, parents):
        return CleanResult(str(options.output), **done.facts)
    store.check_not_foreign(options.output, overwrite)
    counts = dict.fromkeys(rules, 0)
    near = bool({"near-duplicates", "near-leak"} & set(rules))
    with store.writing(
        options.output, kind=KIND, options=recorded, parents=parents, overwrite=overwrite
    ) as draft, Prints(near) as prints:  # fmt: skip
        rows = 0
        with tempfile.TemporaryFile("w+b", dir=draft.path.parent) as lines:
            for item in read_items(files, columns):
                rows += 1
                if (cleaned := _cleaned(item, rules, counts)) is not None:
                    prints.add(cleaned)
                    lines.write(line_of(cleaned.raw).encode("utf-8", "backslashreplace"))
            dropped = _compared(prints, rules, options, counts)
            lines.seek(0)
            kept = _copy(lines, draft.path, dropped)
        if not kept:
            raise InputError(f"the rules leave none of {rows} rows", "use fewer: --rules")
        draft.facts |= {"rows": rows, "kept": kept, "counts": counts}
    return CleanResult(str(options.output), rows, kept, counts)


def _cleaned(item: Item, rules: Sequence[str], counts: dict[str, int]) -> Item | None:
    """The row after its fixes; None where a rule drops it."""
    if item.example is None:
        if "bad-rows" not in rules:
            raise InputError(
                f"{item.file}:{item.line}: {item.problem}", "the rule bad-rows leaves bad rows out"
            )
        counts["bad-rows"] += 1
        return None
    for name in (name for name in rules if name in FIXES):
        fix = FIXES[name][1]
        raw = _with_texts(item.raw, fix)
        if raw != item.raw:
            fixed = read_item(item.file, item.line, raw, {})
            if fixed.example is not None:  # a fix must not break a row
                item = fixed
                counts[name] += 1
    for kind in ROW_KINDS:
        if kind.name in rules and kind.look(item):
            counts[kind.name] += 1
            return None
    return item


def _with_texts(value: Any, fix: Fix) -> Any:
    """A value with every text in it fixed; keys stay."""
    if isinstance(value, str):
        return fix(value)
    if isinstance(value, dict):
        return {key: _with_texts(entry, fix) for key, entry in value.items()}
    return [_with_texts(entry, fix) for entry in value] if isinstance(value, list) else value


def _compared(
    prints: Prints, rules: Sequence[str], options: CleanOptions, counts: dict[str, int]
) -> set[int]:
    """Indices of the rows that rules drop which compare rows; each is counted once."""
    dropped: set[int] = set()
    near, columns = options.near, parse_columns(options.columns)

    def drop(rule: str, pairs: Iterator[Pair]) -> None:
        new = {i for i, _ in pairs} - dropped
        counts[rule] += len(new)
        dropped.update(new)

    if "exact-duplicates" in rules:
        drop("exact-duplicates", iter(prints.duplicates()))
    if "near-duplicates" in rules:
        drop("near-duplicates", iter(prints.near_duplicates(near)))
    if {"leak", "near-leak"} & set(rules):
        with Prints(prints.near) as other:
            for path in options.against:
                for item in read_compared(path, columns):
                    other.add(item)
            if "leak" in rules:
                drop("leak", iter(prints.shared_questions(other)))
            if "near-leak" in rules:
                drop("near-leak", iter(prints.similar_rows(other, near)))
    return dropped


def _copy(lines: IO[bytes], target: Path, dropped: set[int]) -> int:
    """Write the lines that are not dropped; returns their number."""
    kept = 0
    with target.open("wb") as out:
        for i, line in enumerate(lines):
            if i not in dropped:
                out.write(line)
                kept += 1
    return kept
