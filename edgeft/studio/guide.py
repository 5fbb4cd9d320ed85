"""A data file and a few choices -> the steps from it to a verdict, each as one command.

    steps = guide_steps(Choice("data/chats.csv", base="smollm2-135m"))
    steps[0].form, steps[0].values

The example task goes the way of `edgeft demo`. An own file is split first.
"""

from __future__ import annotations

import itertools
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from edgeft.benchmarks.suites import load_suite
from edgeft.data.reading import read_rows
from edgeft.data.rows import load_examples
from edgeft.data.shapes import is_row
from edgeft.errors import EdgeftError
from edgeft.files import whole_file

EXAMPLE, SUITE, CHAT = "example", "smart_home", "chat"
"""CHAT: the step that only a person starts"""
QUANTS = ("f16", "q8_0", "q4_k_m")
QUICK_STEPS, QUICK_ITEMS, BASELINE_ITEMS, EXAMPLE_STEPS = 40, 60, 30, 320
"""QUICK_ITEMS: from 59 on the gate passes a file that changes no answer"""
TEST_ROWS, MIN_TEST, MAX_TEST = 80, 0.1, 0.3
"""rows that the test should have, and the share of the file that it takes for them"""
SAMPLE_ROWS, EXAMPLE_CHARS = 50, 40
SAMPLE_BYTES = 2_000_000
"""a larger file is not read to guess how its answers are scored"""
ASKS = re.compile(r"quest|prompt|input|instruct|ask|user|text|问|指令|输入")
LEARNS = re.compile(
    r"answ|reply|respon|output|completion|label|target|intent|assistant|答|回|输出|标签"
)
"""names of columns that are asked, and of those that are learned"""


@dataclass(frozen=True)
class Choice:
    """What the guide asks."""

    data: str
    """path in the workspace, or "example" """
    base: str = "smollm2-135m"
    size: str = "quick"
    """or full"""
    scorer: str = ""
    question: str = ""
    """column that is asked, where the file's own names say it not"""
    answer: str = ""
    """column that is learned, likewise"""
    rows: str = ""
    """of the file, a number; "" = it is too large to be counted"""

    @property
    def test_share(self) -> float:
        """Share of the rows for the test: more of a small file."""
        share = math.ceil(100 * TEST_ROWS / self._count) / 100 if self._count else MIN_TEST
        return min(MAX_TEST, max(MIN_TEST, share))

    @property
    def test_rows(self) -> int | None:
        """About how many rows the test gets, where they are too few for the gate; else None."""
        count = round(self._count * self.test_share)
        return count if self._count and count < QUICK_ITEMS else None

    @property
    def _count(self) -> int:
        """0 = unknown."""
        return int(self.rows) if self.rows.isdecimal() else 0

    @property
    def columns(self) -> list[str]:
        """Values of --columns."""
        return column_pairs(self.question, self.answer)

    @property
    def clean(self) -> str:
        """File of the cleaned rows."""
        path = PurePosixPath(self.data)
        return str(path.with_name(f"{path.name.partition('.')[0]}-clean.jsonl"))

    @property
    def stem(self) -> str:
        name = SUITE if self.data == EXAMPLE else PurePosixPath(self.data).name.partition(".")[0]
        return f"{name}-quick" if self.size == "quick" else name

    @property
    def splits(self) -> str:
        """Folder of the three files."""
        if self.data == EXAMPLE:
            return f"data/{SUITE}"
        path = PurePosixPath(self.data)
        return str(path.with_name(f"{path.name.partition('.')[0]}-splits"))


@dataclass(frozen=True)
class Step:
    name: str
    """also its key among the words"""
    page: str
    form: str
    values: Mapping[str, Any]
    result: str = ""
    """path that is there once it is done; "" = only its job says so"""
    needs: tuple[str, ...] = field(default=())
    """steps before it"""


def column_pairs(question: str, answer: str) -> list[str]:
    """Values of --columns; none where a name is missing."""
    return [f"prompt={question}", f"answer={answer}"] if question and answer else []


def guide_steps(choice: Choice) -> list[Step]:
    """In the order of use."""
    train, validation, test = (
        f"{choice.splits}/{name}.jsonl" for name in ("train", "validation", "test")
    )
    is_example, is_quick = choice.data == EXAMPLE, choice.size == "quick"
    adapter, out, report = (f"{choice.stem}/{name}" for name in ("adapter", "out", "report"))
    files = [f"{out}/{quant}.gguf" for quant in QUANTS]
    limit = {"limit": str(QUICK_ITEMS)} if is_quick else {}
    scorer = {"scorer": choice.scorer} if choice.scorer else {}
    asked: dict[str, Any] = {"validation_data": validation, "few_shot_data": train, **scorer}
    length = (
        {"steps": str(QUICK_STEPS)}
        if is_quick
        else {"steps": str(EXAMPLE_STEPS)}
        if is_example
        else {}
    )
    if is_example:
        asked = {"items": SUITE}
    steps = [
        Step("clean", "data", "clean",
             {"data": [choice.data], "output": choice.clean, "columns": choice.columns}, choice.clean),
        Step("split", "data", "split",
             {"data": [choice.clean], "output": choice.splits, "validation": "0.1",
              "test": f"{choice.test_share:g}"}, test,
             ("clean",)),
        Step("check", "data", "check", {"data": [train], "against": [validation]}, needs=("split",)),
        Step("baseline", "baseline", "baseline",
             {"base": [choice.base], **asked, "limit": str(BASELINE_ITEMS)}, needs=("split",)),
        Step("train", "train", "train",
             {"base": choice.base, "data": train, "validation_data": validation, "output": adapter,
              "batch_size": "4", "micro_batch_size": "4", **length}, adapter, ("check",)),
        Step("export", "export", "export", {"adapter": [adapter], "out": out, "quants": list(QUANTS)},
             files[-1], ("train",)),
        Step("ab", "measure", "ab",
             {"artifacts": [*files[1:], files[0]], "items": SUITE if is_example else test, "folder": report,
              **({} if is_example else scorer), **limit}, f"{report}/report.json", ("export",)),
        Step(CHAT, "chat", "chat", {"artifacts": [files[-1], files[0]], "port": "0"}, needs=("export",)),
    ]  # fmt: skip
    return [step for step in steps if not (is_example and step.name in ("clean", "split"))]


def copy_example(root: Path) -> None:
    """Put the files of the embedded task into the workspace, where they are not there already."""
    suite = load_suite(SUITE)
    folder = root / Choice(EXAMPLE).splits
    folder.mkdir(parents=True, exist_ok=True)
    for source in (suite.train, suite.validation, suite.test):
        target = folder / source.name
        if not target.exists():
            with whole_file(target) as temp:
                shutil.copyfile(source, temp)


@dataclass(frozen=True)
class Columns:
    """The columns of a file whose names do not say which is asked and which is learned."""

    examples: dict[str, str]
    """name -> the beginning of its value in the first row"""
    question: str
    answer: str
    """guesses: by a column's name, else by how much text it holds"""

    @property
    def pairs(self) -> list[str]:
        """Values of --columns."""
        return column_pairs(self.question, self.answer)


def unknown_columns(path: Path) -> Columns | None:
    """None for rows that are known, for what cannot be read, and for a single column."""
    rows = read_rows(path)
    try:
        sample = [row for _, row in itertools.islice(rows, SAMPLE_ROWS)]
    except (EdgeftError, OSError):
        return None
    finally:
        rows.close()  # type: ignore[attr-defined]
    first = sample[0] if sample else None
    if not isinstance(first, dict) or len(first) < 2 or is_row(first):
        return None
    letters: dict[str, int] = dict.fromkeys(map(str, first), 0)
    for row in filter(lambda row: isinstance(row, dict), sample):
        for name in letters:
            letters[name] += sum(map(str.isalpha, str(row.get(name) or "")))
    names = sorted(letters, key=lambda name: -letters[name])
    question = next((name for name in names if ASKS.search(name.lower())), names[0])
    others = [name for name in names if name != question]
    answer = next((name for name in others if LEARNS.search(name.lower())), others[0])
    examples = {str(name): str(value)[:EXAMPLE_CHARS] for name, value in first.items()}
    return Columns(examples, question, answer)


def guess_scorer(path: Path, columns: Sequence[str] = ()) -> dict[str, str]:
    """`scorer`: json where every answer is a JSON object, else exact; and `rows`, their number, which is left
    out with what cannot be read or is large."""
    try:
        if path.stat().st_size > SAMPLE_BYTES:
            return {"scorer": "exact"}
        answers = [example.answer.strip() for example in load_examples(path, "skip", columns)]
    except (EdgeftError, OSError):
        return {"scorer": "exact"}
    is_json = answers and all(text.startswith("{") for text in answers)
    return {"scorer": "json" if is_json else "exact", "rows": str(len(answers) or "")}
