"""The pages of the studio: which commands stand on which, which fields come first, and what they offer.

A form shows the fields in `first`; all others are folded under "more options".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from edgeft.formats import FORMATS
from edgeft.models import sources
from edgeft.studio.forms import CommandForm, Field, Values
from edgeft.studio.nouns import Kind, Noun
from edgeft.train.registry import METHODS, OBJECTIVES


@dataclass(frozen=True)
class FormSpec:
    """One form: a command, and how the page shows it."""

    name: str
    """of the form in this page's address"""
    command: str
    first: tuple[str, ...]
    fixed: Mapping[str, str | bool] = field(default_factory=dict)
    """values that the form does not ask for"""
    start: Mapping[str, str | bool | tuple[str, ...]] = field(default_factory=dict)
    """values other than the command's defaults"""
    free_names: tuple[str, ...] = ()
    """fields of `start` that name a result: a number is added where the name is taken"""
    hidden: tuple[str, ...] = ()
    """fields that are left out"""
    last: str = ""
    """field with several values, whose last one the form asks for by itself: the baseline of a comparison"""


@dataclass(frozen=True)
class Page:
    name: str
    forms: tuple[FormSpec, ...] = ()


HUMAN = ("human", "votes", "rater", "port", "browser")
SERVE_HIDDEN = ("host", "api_key_file", "allow_host", "cors")
PAGES = (
    Page("start"),
    Page("data", (
        FormSpec("check", "data check", ("data", "base", "against")),
        FormSpec("preview", "train", ("base", "data", "objective"),
                 {"preview": True, "output": "preview"}, {"base": "smollm2-135m"},
                 hidden=("preview", "show_config", "output", "resume", "overwrite")),
        FormSpec("clean", "data clean", ("data", "output", "rules"),
                 start={"output": "data/clean.jsonl"}, free_names=("output",)),
        FormSpec("split", "data split", ("data", "output", "validation", "test", "stratify"),
                 start={"output": "data/splits", "test": "0.1"}, free_names=("output",)),
        FormSpec("mix", "data mix", ("data", "replay", "output"),
                 start={"output": "data/mix.jsonl"}, free_names=("output",)),
        FormSpec("label", "data label", ("data", "judge", "criterion", "model", "output"),
                 start={"output": "data/pairs.jsonl"}, free_names=("output",)),
    )),
    Page("baseline", (
        FormSpec("baseline", "baseline",
                 ("base", "items", "validation_data", "few_shot_data", "scorer", "limit", "target"),
                 start={"base": ("smollm2-135m",)}),
    )),
    Page("plan", (
        FormSpec("plan", "plan", ("base", "data", "methods", "batch_size", "cutoff_length", "memory"),
                 start={"base": "smollm2-135m"}),
    )),
    Page("train", (
        FormSpec("train", "train",
                 ("base", "data", "validation_data", "output", "method", "objective", "epochs", "steps",
                  "batch_size", "learning_rate", "cutoff_length", "lora_r"),
                 start={"base": "smollm2-135m", "output": "adapter"}, free_names=("output",),
                 hidden=("preview", "show_config")),
        FormSpec("sweep", "sweep", ("file", "output", "trials", "sampler", "jobs"),
                 start={"output": "sweep"}, free_names=("output",), hidden=("ray",)),
    )),
    Page("export", (
        FormSpec("export", "merge-export", ("adapter", "out", "formats", "quants", "imatrix", "max_size"),
                 start={"out": "out", "quants": ("f16", "q8_0", "q4_k_m")}),
    )),
    Page("chat", (
        FormSpec("chat", "serve", ("artifacts", "context", "slots"), start={"port": "0"}, hidden=SERVE_HIDDEN),
    )),
    Page("measure", (
        FormSpec("ab", "ab",
                 ("artifacts", "items", "scorer", "margin", "limit", "folder", "base", "few_shot_data",
                  "speed", "fidelity"),
                 start={"folder": "report"}, free_names=("folder",), hidden=HUMAN, last="artifacts"),
        FormSpec("bench", "bench", ("artifacts", "baseline", "items", "scorer", "limit", "speed", "text")),
        FormSpec("search", "search",
                 ("adapter", "out", "items", "scorer", "max_size", "max_memory", "min_tps", "folder"),
                 start={"out": "search", "folder": "search-report"}, free_names=("folder",),
                 hidden=("ray",)),
        FormSpec("human", "ab", ("artifacts", "items", "limit", "rater"),
                 {"human": True, "browser": False},
                 hidden=("human", "browser", "port"), last="artifacts"),
    )),
    Page("runs"),
    Page("jobs"),
)  # fmt: skip
BY_NAME = {page.name: page for page in PAGES}

DATA: tuple[Kind, ...] = ("data",)
SOURCES: dict[str, tuple[Kind, ...]] = {
    **dict.fromkeys(
        ("data", "validation_data", "against", "items", "few_shot_data", "replay", "calibration", "calibration_text",
         "instructions",
         "text", "ship_text", "chats", "refusals", "general"),
        DATA,
    ),
    "base": ("base",),
    "adapter": ("adapter",),
    "ship_from": ("artifact",),
    "artifacts": ("artifact",),
    "artifact": ("artifact",),
    "model": ("artifact",),
    "baseline": ("artifact",),
}  # fmt: skip
"""field -> kinds of nouns in the workspace that it can name"""
SUITES = ("smart_home",)
NAMES: dict[str, tuple[str, ...]] = {
    "formats": tuple(FORMATS),
    "method": tuple(METHODS),
    "methods": tuple(METHODS),
    "objective": tuple(OBJECTIVES),
    "scorer": (
        "exact",
        "json",
        "numeric",
        "regex",
        "contains",
        "choice",
        "tool-call",
        "chrf",
        "rouge-l",
    ),
    "items": SUITES,
    "rules": ("default", "mask-personal-data", "near-duplicates"),
    "quants": ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "gptq-q4_0", "q3_k_m", "q2_k"),
    "stratify": ("answer", "tags"),
    "imatrix": ("auto",),
    "ship_text": ("auto",),
    "threads": ("auto", "all"),
}
"""field -> usual values"""
CLOSED = ("method", "objective")
"""fields that take no other value than the usual ones"""


def suggestions(item: Field, nouns: Sequence[Noun]) -> list[str]:
    """What a field offers: names of the workspace first, then usual values."""
    kinds = SOURCES.get(item.name, ())
    names = [noun.path for noun in nouns if noun.kind in kinds]
    if item.name == "base":
        names = [*sources(), *names, *(noun.path for noun in nouns if is_base_file(noun))]
    return [*names, *NAMES.get(item.name, ())]


def usual_values(spec: FormSpec, nouns: Sequence[Noun]) -> dict[str, list[str]]:
    """What a form most likely is about: the newest adapter; the artifacts beside an f16 file, which comes last."""
    newest = sorted(nouns, key=lambda noun: -noun.changed)
    if spec.command == "merge-export":
        adapter = next((noun.path for noun in newest if noun.kind == "adapter"), None)
        return {"adapter": [adapter]} if adapter else {}
    exact = next((noun for noun in newest if noun.name == "f16.gguf"), None)
    if spec.last and exact:
        folder = exact.path.removesuffix(exact.name)
        others = [
            noun.path
            for noun in nouns
            if noun.kind == "artifact"
            and noun.path.removesuffix(noun.name) == folder
            and noun != exact
        ]
        return {spec.last: [*(others[:1] if spec.name == "human" else others), exact.path]}
    return {}


def is_base_file(noun: Noun) -> bool:
    """Whether a GGUF may be a base: an export of no adapter, or a file that came without a manifest."""
    no_adapter = not any(role.startswith("adapter") for role in noun.parents)
    return noun.kind == "artifact" and noun.path.endswith(".gguf") and no_adapter


def spec_of(page: str, name: str) -> FormSpec | None:
    forms = BY_NAME[page].forms if page in BY_NAME else ()
    return next((spec for spec in forms if spec.name == name), None)


def page_of(spec: FormSpec) -> str:
    return next(page.name for page in PAGES if spec in page.forms)


def fields_of(spec: FormSpec, form: CommandForm) -> tuple[list[Field], list[Field]]:
    """(those in front, those under "more options")."""
    shown = [item for item in form.fields if item.name not in (*spec.hidden, *spec.fixed)]
    shown = [
        replace(item, kind="choice", choices=NAMES[item.name]) if item.name in CLOSED else item
        for item in shown
    ]
    first = [item for name in spec.first for item in shown if item.name == name]
    return first, [item for item in shown if item not in first]


def with_fixed(spec: FormSpec, values: Values) -> dict[str, str | bool | list[str]]:
    """The values of a form with those that it does not ask for."""
    return {**values, **spec.fixed}
