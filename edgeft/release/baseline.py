"""Base models and the validation split of a task -> what prompts reach, and whether to fine-tune.

    options = BaselineOptions(base=("smollm2-135m",), target=0.9)
    result = run_baseline(options, EvalOptions("smart_home"))
    result.advice.word, result.advice.base         # "fine-tune", "smollm2-135m"
    print(baseline_text(result))

Each base is asked the same rows with instructions only, and with worked examples: the same for all rows,
or those most like the row. Scorers, intervals and the cache of answers are those of the release gate.
The test split is not read, so that it stays fit for the gate.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft import files, machine
from edgeft.base.resolve import resolve_base
from edgeft.benchmarks.options import EvalOptions
from edgeft.benchmarks.quality import evaluate
from edgeft.benchmarks.quality.evaluate import Items
from edgeft.benchmarks.quality.fewshot import FewShot, Pick, question
from edgeft.benchmarks.suites import Suite, load_suite, suite_names
from edgeft.data.reading import read_text
from edgeft.data.rows import load_examples
from edgeft.data.splits import fingerprint
from edgeft.errors import InputError, TooLong
from edgeft.export.options import ExportOptions
from edgeft.export.pipeline import export
from edgeft.progress import say
from edgeft.records import Score
from edgeft.release.advice import Advice, Attempt, advise
from edgeft.release.options import BaselineOptions
from edgeft.release.scores import score_interval
from edgeft.report import tables
from edgeft.weights import gguf_reader
from edgeft.weights.gguf_check import check_runs

QUANT = "f16"
"""GGUF type of a base that is no artifact yet"""


@dataclass(frozen=True)
class Baseline:
    """Every attempt, and the advice that follows."""

    task: dict[str, Any]
    """{name, items, identity, scorer}"""
    target: float
    bases: dict[str, str]
    """name in the attempts -> the base as the user named it"""
    attempts: tuple[Attempt, ...]
    advice: Advice
    machine: dict[str, Any]
    notes: tuple[str, ...] = ()
    """what was left out, and why"""

    def to_json(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "target": self.target,
            "bases": self.bases,
            "attempts": [
                attempt.to_json() | {"gap": attempt.gap(self.target)} for attempt in self.attempts
            ],
            "advice": self.advice.to_json(),
            "machine": self.machine,
            "notes": list(self.notes),
        }


def run_baseline(options: BaselineOptions, eval_options: EvalOptions) -> Baseline:
    """Ask every base in every way, then decide. InputError for bad input, before any answer."""
    name, items, notes = baseline_items(options, eval_options)
    ways, left_out = _ways(options, items)
    notes += left_out
    bases = _names(options.base)
    places = {name: _place(base) for name, base in bases.items()}
    artifacts = {name: _artifact(place, eval_options.threads) for name, place in places.items()}
    attempts, too_long = _ask(artifacts, items, eval_options, ways)
    notes += too_long
    return Baseline(
        task={
            "name": name, "items": len(items.examples),
            "identity": fingerprint(items.examples), "scorer": items.scorer,
        },
        target=options.target,
        bases=bases,
        attempts=tuple(attempts),
        advice=advise(attempts, options.target),
        machine=machine.describe_machine() | {"threads": eval_options.threads or "all cores"},
        notes=tuple(notes),
    )  # fmt: skip


def baseline_items(
    options: BaselineOptions, eval_options: EvalOptions
) -> tuple[str, Items, list[str]]:
    """(name of the task, the rows to ask with their examples, notes).

    A suite gives its validation split, instructions and scorer, and its training split to draw
    examples from. Of a file of items the rows are asked, unless `validation_data` names others. No row
    that is asked, and none of a file of items, is shown as an example.
    """
    named = eval_options.items
    suite = load_suite(named) if named in suite_names() else None
    asked = options.validation_data or (_validation(suite) if suite else named and Path(named))
    if not asked:
        raise InputError("no rows to ask", "--items smart_home, or --validation-data FILE")
    pool = eval_options.few_shot_data or (suite.train if suite and suite.train.is_file() else None)
    instructions = _instructions(options.instructions)
    items = evaluate.load_items(
        dataclasses.replace(
            eval_options,
            items=str(asked),
            few_shot_data=pool,
            scorer=eval_options.scorer or (suite.scorer if suite else None),
            max_tokens=eval_options.max_tokens or (suite.max_tokens if suite else None),
        )
    )
    held_out = {question(example) for example in items.examples}
    if named and not suite and options.validation_data:
        held_out |= {question(e) for e in load_examples(Path(named), eval_options.bad_rows)}
    shown = tuple(e for e in items.fewshot_pool if question(e) not in held_out)
    notes = []
    if len(shown) < len(items.fewshot_pool):
        count = len(items.fewshot_pool) - len(shown)
        notes.append(f"{count} rows to show are also rows to ask, and are not shown")
    items = dataclasses.replace(
        items,
        fewshot_pool=shown,
        instructions=instructions or (suite.instructions if suite else ""),
        allow_truncated=suite.allow_truncated if suite else False,
    )
    return (suite.name if suite else Path(asked).stem), items, notes


def _names(bases: Sequence[str]) -> dict[str, str]:
    """name -> base, each once; a path has its last part as its name, unless two would have the same."""
    short = {base: Path(base).name if files.expand_user(base).exists() else base for base in bases}
    count = collections.Counter(short.values())
    return {name if count[name] == 1 else base: base for base, name in short.items()}


def _instructions(path: Path | None) -> str:
    """The text of the file, "" without one; InputError for a file that is missing or has no text."""
    if path is None:
        return ""
    hint = "--instructions: a file with the system prompt"
    if not path.exists():
        raise InputError(f"no such file: {path}", hint)
    if not (text := read_text(path).strip()):
        raise InputError(f"{path} is empty", hint)
    return text


def _validation(suite: Suite) -> Path:
    if not suite.validation.is_file():
        raise InputError(f"{suite.name} has no validation split", "--validation-data FILE")
    return suite.validation


def _ways(options: BaselineOptions, items: Items) -> tuple[list[FewShot], list[str]]:
    """(the ways to ask, a note for each number of examples that there are too few rows for)."""
    pool = len(items.fewshot_pool)
    possible = [shots for shots in dict.fromkeys(options.shots) if shots <= pool]
    notes = [
        f"{shots} examples were not tried: there are {pool} rows to show (--few-shot-data FILE)"
        for shots in dict.fromkeys(options.shots)
        if shots > pool
    ]
    if not possible:
        raise InputError(f"there are only {pool} examples to show", "--few-shot-data FILE")
    picks: tuple[Pick, ...] = ("fixed", "similar") if options.pick == "both" else (options.pick,)
    ways = [FewShot(shots, pick) for shots in possible for pick in (picks if shots else picks[:1])]
    return [FewShot(0) if not way.shots else way for way in ways], notes


def _ask(
    artifacts: Mapping[str, Path], items: Items, options: EvalOptions, ways: Sequence[FewShot]
) -> tuple[list[Attempt], list[str]]:
    """(attempts, a note for each way whose prompts do not fit a base's context).

    TooLong where none fits.
    """
    attempts, notes = [], []
    failure: TooLong | None = None
    for base, artifact in artifacts.items():
        for way in ways:
            say(f"asking {base}, {way}")
            try:
                score = evaluate.measure(artifact, items, options, way)
            except TooLong as error:
                notes.append(f"{base}, {way} was not tried: {error.message}")
                failure = error
            else:
                attempts.append(_attempt(base, artifact, way, score))
    if failure and not attempts:
        raise failure
    return attempts, notes


def base_artifact(base: str, threads: int | None = None) -> Path:
    """A base as a runtime opens it: a .gguf as it is, anything else exported once into the cache."""
    return _artifact(_place(base), threads)


def _place(base: str) -> Path:
    """The .gguf or the folder of a base. InputError or FormatError for what is neither."""
    path = files.expand_user(base)
    if path.suffix != ".gguf":
        return resolve_base(base)
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    check_runs(gguf_reader.read(path, errors="surrogateescape"))
    return path


def _artifact(folder: Path, threads: int | None) -> Path:
    if folder.is_file():
        return folder
    place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
    out = files.home() / "baselines" / f"{folder.name}-{place}"
    more: dict[str, Any] = {"threads": threads} if threads else {}
    options = ExportOptions(out, base=str(folder), quants=(QUANT,), overwrite=True, **more)
    return export(options)[0].path


def _attempt(base: str, artifact: Path, way: FewShot, score: Score) -> Attempt:
    count = len(score.values)
    return Attempt(
        base=base,
        few_shot=way,
        size=evaluate.size_of(artifact),
        values=score.values,
        interval=score_interval(score.values),
        prompt_tokens=statistics.mean(score.prompt_tokens),
        seconds=score.seconds / count,
        stopped=sum(score.stopped) / count,
    )


def baseline_text(result: Baseline) -> str:
    """For a terminal: the word, the reasons, a table of all attempts, the notes."""
    advice = result.advice
    sure = "" if advice.proven else " (not proven)"
    lines = [f"{advice.word}: {advice.base}{sure}", *(f"  {reason}" for reason in advice.reasons)]
    rows = [_row(attempt, result.target) for attempt in result.attempts]
    head = ["base", "examples", "accuracy", "95 %", "to the target", "tokens a prompt",
            "s an answer", "size"]  # fmt: skip
    notes = [f"  {note}" for note in result.notes]
    return "\n".join([*lines, "", tables.table(head, rows), *notes])


def _row(attempt: Attempt, target: float) -> Sequence[str]:
    low, high = attempt.interval
    way = attempt.few_shot
    return [
        attempt.base,
        f"{way.shots} {way.pick}" if way.shots else "none",
        f"{attempt.accuracy:.1%}",
        f"{low:.1%} to {high:.1%}",
        tables.points(-attempt.gap(target)),
        f"{attempt.prompt_tokens:.0f}",
        f"{attempt.seconds:.2f}",
        files.format_bytes(attempt.size),
    ]
