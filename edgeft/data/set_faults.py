"""What only the whole file shows -> findings: a table of kinds, each with one small function.

`Statistics` is filled row by row, in memory that does not grow with the rows. Each function of
`SET_KINDS` reads it and yields a `Hit` where there is something to say.
"""

from __future__ import annotations

import collections
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeft.data.items import Item
from edgeft.data.row_faults import Severity, excerpt, main_script
from edgeft.data.similar import hash64

Place = tuple[Path, int]
"""(file, line)"""
MAX_PLACES = 10
"""places that a finding lists"""
MAX_LABELS = 1000
"""distinct short answers that are counted; a file with more is no classification"""
LABEL_CHARS = 60
"""of an answer that can be a label"""
MAX_CLASSES = 50
FEW_ROWS = 50
MANY_ROWS = 20
"""from so many rows on a share says something"""
RARE_ROWS = 5
"""of a class that training hardly sees"""
MAJORITY = 0.9
SAME_LENGTH_ROWS = 5
MIN_CUT_CHARS = 100


@dataclass
class Hits:
    """The rows with one fault: their number, and the first places with evidence."""

    rows: int = 0
    places: list[Place] = field(default_factory=list)
    evidence: list[str] = field(default_factory=list)

    def add(self, place: Place, evidence: str) -> None:
        self.rows += 1
        if len(self.places) < MAX_PLACES:
            self.places.append(place)
            self.evidence.append(evidence)


@dataclass(frozen=True)
class Hit:
    """What a function of `SET_KINDS` found."""

    hits: Hits
    message: str = ""
    """in place of the kind's own; "" = that one"""
    severity: Severity | None = None
    """in place of the kind's own"""


@dataclass
class Longest:
    """Texts of the greatest length so far: many of one length were cut at it."""

    chars: int = 0
    texts: set[int] = field(default_factory=set)
    """hashes of the different texts of that length, at most 1000"""
    places: list[Place] = field(default_factory=list)

    def add(self, text: str, place: Place) -> None:
        if len(text) > self.chars:
            self.chars, self.texts, self.places = len(text), set(), []
        if len(text) == self.chars and len(self.texts) < 1000:
            self.texts.add(hash64(text))
            if len(self.places) < MAX_PLACES:
                self.places.append(place)


@dataclass
class Statistics:
    """Counts over all rows of the data."""

    rows: int = 0
    """rows that are not bad"""
    bad: dict[str, Hits] = field(default_factory=dict)
    """problem -> rows"""
    unused: collections.Counter[str] = field(default_factory=collections.Counter)
    """key that is not used -> rows"""
    kinds: dict[str, Hits] = field(default_factory=dict)
    """answer, preference or kto -> rows"""
    shapes: dict[str, Hits] = field(default_factory=dict)
    """used keys -> rows"""
    labels: dict[str, Hits] | None = field(default_factory=dict)
    """short answer -> rows; None where there are too many for labels"""
    tags: collections.Counter[str] = field(default_factory=collections.Counter)
    scripts: dict[str, Hits] = field(default_factory=dict)
    json_answers: int = 0
    """answers that are a JSON object or array"""
    other_answers: Hits = field(default_factory=Hits)
    """answers that are none"""
    json_keys: collections.Counter[str] = field(default_factory=collections.Counter)
    """of JSON answers, at most 1000 different ones"""
    with_system: Hits = field(default_factory=Hits)
    without_system: Hits = field(default_factory=Hits)
    with_reasoning: Hits = field(default_factory=Hits)
    without_reasoning: Hits = field(default_factory=Hits)
    desirable: collections.Counter[bool] = field(default_factory=collections.Counter)
    longest_answers: Longest = field(default_factory=Longest)
    longest_questions: Longest = field(default_factory=Longest)
    chars: int = 0
    """of all answers"""

    def add_bad(self, item: Item) -> None:
        problem = re.sub(r"\d+", "N", item.problem)[:120]
        self.bad.setdefault(problem, Hits()).add((item.file, item.line), item.hint)

    def add(self, item: Item) -> None:
        """Count a row that is not bad."""
        assert item.example is not None
        place = item.file, item.line
        answer = item.answer
        self.rows += 1
        self.chars += len(answer)
        self.unused.update(item.unread)
        self.kinds.setdefault(item.kind, Hits()).add(place, excerpt(item.question))
        keys = (
            sorted(set(map(str, item.raw)) - set(item.unread)) if isinstance(item.raw, dict) else []
        )
        shape = ", ".join(keys)
        if shape in self.shapes or len(self.shapes) < MAX_LABELS:
            self.shapes.setdefault(shape, Hits()).add(place, "")
        self.tags.update(item.example.tags if len(self.tags) < MAX_LABELS else ())
        self._add_label(answer, place)
        self._add_json(answer, place)
        script = main_script(answer) or main_script(item.text)
        if script:
            self.scripts.setdefault(script, Hits()).add(place, excerpt(answer))
        (self.with_system if item.system else self.without_system).add(
            place, excerpt(item.question)
        )
        thinks = any(m.reasoning or "<think>" in m.content for m in item.example.messages)
        (self.with_reasoning if thinks else self.without_reasoning).add(place, excerpt(answer))
        if item.desirable is not None:
            self.desirable[item.desirable] += 1
        self.longest_answers.add(answer, place)
        self.longest_questions.add(item.question, place)

    def _add_label(self, answer: str, place: Place) -> None:
        if self.labels is None:
            return
        if len(answer) > LABEL_CHARS:
            self.labels.setdefault("(long)", Hits()).add(place, "")
        else:
            self.labels.setdefault(answer, Hits()).add(place, "")
        if len(self.labels) > MAX_LABELS:
            self.labels = None

    def _add_json(self, answer: str, place: Place) -> None:
        if answer.lstrip()[:1] in ("{", "["):
            try:
                value = json.loads(answer)
            except (ValueError, RecursionError) as error:
                self.other_answers.add(place, f"{error}: {excerpt(answer)}")
                return
            self.json_answers += 1
            if isinstance(value, dict) and len(self.json_keys) < MAX_LABELS:
                self.json_keys.update(value.keys())
        else:
            self.other_answers.add(place, excerpt(answer))

    @property
    def classes(self) -> dict[str, Hits]:
        """The labels where the file is a classification, else {}."""
        labels = self.labels or {}
        short = self.rows - (labels["(long)"].rows if "(long)" in labels else 0)
        if self.rows < MANY_ROWS or short < 0.98 * self.rows:
            return {}
        few = 1 <= len(labels) <= min(MAX_CLASSES, max(2, self.rows // 5))
        return {k: v for k, v in labels.items() if k != "(long)"} if few else {}


Look = Callable[[Statistics], Iterator[Hit]]


@dataclass(frozen=True)
class SetKind:
    """A kind of fault that only the whole file shows."""

    name: str
    severity: Severity
    about: str
    look: Look
    error_share: float | None = None
    """share of the rows from which on the finding is an error"""


def _bad_rows(s: Statistics) -> Iterator[Hit]:
    for problem, hits in sorted(s.bad.items(), key=lambda pair: -pair[1].rows):
        hints = [hint for hint in dict.fromkeys(hits.evidence) if hint]
        yield Hit(Hits(hits.rows, hits.places, hints[:1]), problem)


def _unused_keys(s: Statistics) -> Iterator[Hit]:
    if s.unused:
        keys = ", ".join(f"{key or '(no name)'} ({n})" for key, n in s.unused.most_common(10))
        yield Hit(Hits(max(s.unused.values())), f"keys that are not used: {keys}")


def _mixed_kinds(s: Statistics) -> Iterator[Hit]:
    if len(s.kinds) > 1:
        rare = min(s.kinds.values(), key=lambda hits: hits.rows)
        names = ", ".join(f"{hits.rows} {name}" for name, hits in s.kinds.items())
        yield Hit(rare, f"rows for different objectives: {names}")


def _mixed_shapes(s: Statistics) -> Iterator[Hit]:
    if len(s.shapes) > 1:
        common = max(s.shapes.values(), key=lambda hits: hits.rows)
        rare = min(s.shapes.values(), key=lambda hits: hits.rows)
        if rare.rows <= 0.05 * common.rows:
            shape = next(name for name, hits in s.shapes.items() if hits is rare)
            yield Hit(rare, f"few rows have other keys than most: {shape}")


def _few_rows(s: Statistics) -> Iterator[Hit]:
    if s.rows == 0:
        yield Hit(Hits(), "no row can be learned", "error")
    elif s.rows < FEW_ROWS:
        yield Hit(Hits(s.rows), f"{s.rows} rows: too few to learn a task, or to hold some out")


def _one_answer(s: Statistics) -> Iterator[Hit]:
    if len(s.classes) == 1:
        ((label, hits),) = s.classes.items()
        yield Hit(hits, f"every answer is {label!r}")


def _majority(s: Statistics) -> Iterator[Hit]:
    classes = s.classes
    if len(classes) < 2:
        return
    label, hits = max(classes.items(), key=lambda pair: pair[1].rows)
    if hits.rows > MAJORITY * s.rows:
        rare = Hits(s.rows - hits.rows, *_first(v for k, v in classes.items() if k != label))
        yield Hit(rare, f"{hits.rows} of {s.rows} answers are {label!r}")


def _first(hits: Iterator[Hits]) -> tuple[list[Place], list[str]]:
    """The first places of several hits, in the order of the file; no evidence."""
    return sorted(place for one in hits for place in one.places)[:MAX_PLACES], []


def _rare_classes(s: Statistics) -> Iterator[Hit]:
    rare = {label: hits for label, hits in s.classes.items() if hits.rows < RARE_ROWS}
    if rare:
        names = ", ".join(
            f"{excerpt(label)!r} ({hits.rows})" for label, hits in list(rare.items())[:8]
        )
        rows = sum(hits.rows for hits in rare.values())
        yield Hit(Hits(rows, *_first(iter(rare.values()))), f"classes with few rows: {names}")


def _label_variants(s: Statistics) -> Iterator[Hit]:
    groups = [
        sorted(group, key=lambda label: s.classes[label].rows) for group in _variants(s.classes)
    ]
    if groups:
        rare = [s.classes[label] for group in groups for label in group[:-1]]
        names = "; ".join(", ".join(map(repr, group)) for group in groups)
        hits = Hits(sum(hits.rows for hits in rare), *_first(iter(rare)))
        yield Hit(hits, f"one label in several forms: {names}")


def _variants(names: Iterable[str]) -> list[list[str]]:
    """Those of the names that differ in case, space or marks only."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"[\W_]+", "", name.casefold()) or name, []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _numeric_labels(s: Statistics) -> Iterator[Hit]:
    if len(s.classes) > 1 and all(re.fullmatch(r"-?\d+(?:\.0)?", label) for label in s.classes):
        yield Hit(Hits(s.rows), f"labels are numbers: {', '.join(sorted(s.classes)[:10])}")


def _broken_json(s: Statistics) -> Iterator[Hit]:
    answers = s.json_answers + s.other_answers.rows
    if answers >= MANY_ROWS and s.json_answers > 0.5 * answers and s.other_answers.rows:
        yield Hit(s.other_answers, f"{s.json_answers} answers are JSON, these are not")


def _key_variants(s: Statistics) -> Iterator[Hit]:
    groups = _variants(s.json_keys) if s.json_answers >= MANY_ROWS else []
    if groups:
        rows = sum(min(s.json_keys[key] for key in group) for group in groups)
        names = "; ".join(", ".join(map(repr, group)) for group in groups)
        yield Hit(Hits(rows), f"one key in several forms: {names}")


def _some_have(with_: Hits, without: Hits, what: str) -> Iterator[Hit]:
    rare, common = sorted((with_, without), key=lambda hits: hits.rows)
    if 0 < rare.rows <= 0.2 * common.rows and common.rows >= MANY_ROWS:
        verb = "have" if rare is with_ else "lack"
        yield Hit(rare, f"{rare.rows} of {rare.rows + common.rows} rows {verb} {what}")


def _some_system(s: Statistics) -> Iterator[Hit]:
    return _some_have(s.with_system, s.without_system, "a system turn")


def _some_reasoning(s: Statistics) -> Iterator[Hit]:
    return _some_have(s.with_reasoning, s.without_reasoning, "reasoning")


def _languages(s: Statistics) -> Iterator[Hit]:
    total = sum(hits.rows for hits in s.scripts.values())
    if len(s.scripts) > 1 and total >= MANY_ROWS:
        names = sorted(s.scripts, key=lambda name: -s.scripts[name].rows)
        shares = ", ".join(f"{name} {s.scripts[name].rows / total:.1%}" for name in names)
        yield Hit(s.scripts[names[-1]], f"scripts of the answers: {shares}")


def _cut_at_one_length(s: Statistics) -> Iterator[Hit]:
    for name, longest in (("answers", s.longest_answers), ("questions", s.longest_questions)):
        enough = max(SAME_LENGTH_ROWS, 0.005 * s.rows)
        if longest.chars >= MIN_CUT_CHARS and min(1000, enough) <= len(longest.texts):
            hits = Hits(len(longest.texts), longest.places)
            yield Hit(hits, f"the longest {name} all have exactly {longest.chars} characters")


def _one_sided(s: Statistics) -> Iterator[Hit]:
    if s.desirable and len(s.desirable) == 1:
        ((value, rows),) = s.desirable.items()
        yield Hit(Hits(rows), f"every label is {str(value).lower()}: KTO needs both")


SET_KINDS = (
    SetKind("bad-rows", "error", "rows that training cannot read", _bad_rows),
    SetKind("unused-keys", "note", "keys that say something and are not read", _unused_keys),
    SetKind("mixed-objectives", "error", "single answers, preference pairs and KTO rows in one file",
            _mixed_kinds),
    SetKind("mixed-shapes", "note", "few rows with other keys than the others", _mixed_shapes),
    SetKind("few-rows", "warning", "fewer than 50 rows", _few_rows),
    SetKind("one-answer", "error", "the same answer to every question", _one_answer),
    SetKind("class-balance", "warning", "one class with more than 90 % of the rows", _majority),
    SetKind("rare-classes", "note", "classes with fewer than 5 rows", _rare_classes),
    SetKind("label-variants", "warning", "labels that differ in case, space or marks only",
            _label_variants),
    SetKind("numeric-labels", "note", "labels that are numbers: a base model knows words better",
            _numeric_labels),
    SetKind("broken-json", "warning", "answers that are no JSON, where most are", _broken_json, 0.05),
    SetKind("key-variants", "warning", "keys of JSON answers that differ in case or marks only",
            _key_variants),
    SetKind("system-in-some", "warning", "a system turn in few rows, or in most but not all",
            _some_system),
    SetKind("reasoning-in-some", "warning", "reasoning in few rows, or in most but not all",
            _some_reasoning),
    SetKind("language-mix", "note", "answers in several scripts", _languages),
    SetKind("cut-at-one-length", "warning", "texts that were cut at a fixed length",
            _cut_at_one_length),
    SetKind("one-sided-labels", "error", "KTO rows that are all good or all bad", _one_sided),
)  # fmt: skip
"""one row for each kind; a new kind is one function and one row"""


def same_kind_of_task(one: Statistics, other: Statistics) -> list[tuple[str, Hits]]:
    """Classes of `other` that `one` never shows, where both are classifications of one task."""
    known, tested = one.classes, other.classes
    if not known or not tested or not set(known) & set(tested):
        return []
    return [(label, hits) for label, hits in tested.items() if label not in known]


def counts(hits: dict[str, Hits]) -> dict[str, Any]:
    """Name -> rows, the commonest first."""
    ordered = sorted(hits.items(), key=lambda pair: -pair[1].rows)
    return {name: one.rows for name, one in ordered}
