"""Tasks, seeds and types -> what each way to a small file keeps of a fine-tune: one table.

    python -m edgeft.benchmarks.studies.ship_recipes --out build/ship --text wiki.test.raw

For each task and seed an adapter is trained, and then trained on for `--more-steps` in two ways: plainly (the
control), and with `--ship TYPE`. So all files have the same number of steps behind them. The recipes:

    f16            the control in half precision, which the others are compared with
    plain          the control, rounded
    imatrix        the control, rounded with an importance matrix of its own chats
    gptq           the control, calibrated on its own chats
    plain-stored   the control merged into the stored weights of the base, rounded
    gptq-stored    the same, calibrated
    gptq+text      gptq with plain text among its calibration tokens, `--calibration-text`
    ship           trained for the type
    ship+gptq      trained for the type, and then calibrated on its own chats
    distill        trained for the type with `--ship-distill`, the first training as the teacher
    ship+text      trained for the type with `--ship-text`
    gptq+ship      trained from the first training's gptq file with `--ship-from`
    gptq+ship+text the same with `--ship-text`

A type such as auto-80M is the control in `--quant auto --max-size 80M`.

`edgeft bench` asks the test split of the task, and measures the KL divergence from f16 on the validation
chats and the perplexity of plain text. A training, a file and an answer that are complete are not
repeated, so an interrupted study goes on. --report prints the tables of what is there, and --plot draws
accuracy against bytes of each task, TASK.svg. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeft import store
from edgeft.benchmarks.statistics.noninferiority import (
    Paired,
    judge,
    lower_bound,
    upper_bound,
    worst_outcome,
)
from edgeft.benchmarks.studies.forgetting import edgeft
from edgeft.benchmarks.studies.recorded_options import check_options
from edgeft.benchmarks.studies.tasks import write_task
from edgeft.benchmarks.suites import Suite, load_suite
from edgeft.files import format_bytes, write_text
from edgeft.formats import FORMATS, GPTQ_PREFIX
from edgeft.report import plots, tables

SMART_HOME = "smart_home"
AUTO = "auto-"
"""prefix of a type that names the size of the file"""
BASELINE = "f16 plain"
MARGIN = 0.03
"""of the gate: how much less than f16 is no loss"""
STEPS = {SMART_HOME: 240, "support_intents": 240, "order_extract": 160}
"""of the first training, `--batch-size` rows each"""
CALIBRATED = tuple(name.removeprefix(GPTQ_PREFIX) for name in FORMATS["gguf"].solved)
"""types that GPTQ writes"""
RECORDED = (
    "base", "method", "steps", "more_steps", "more_rate", "from_rate", "distill", "batch_size",
    "calibration_tokens", "calibration_text", "ship_text", "text", "chunks",
)  # fmt: skip
"""options that all results of a folder share"""


@dataclass(frozen=True)
class Recipe:
    """How a file is made of a fine-tune."""

    adapter: str = "control"
    """which training it is exported from: control; ship, distill, shiptext, from or fromtext for the file's type"""
    gptq: bool = False
    """whether GPTQ calibrates it"""
    options: tuple[str, ...] = ()
    """more options of merge-export"""
    text: bool = False
    """whether a quarter of the calibration tokens are of `--calibration-text`"""


STORED = ("--base-precision", "stored")
RECIPES = {
    "plain": Recipe(),
    "plain-stored": Recipe(options=STORED),
    "imatrix": Recipe(options=("--imatrix", "auto")),
    "gptq": Recipe(gptq=True),
    "gptq-stored": Recipe(gptq=True, options=STORED),
    "gptq+text": Recipe(gptq=True, text=True),
    "ship": Recipe("ship"),
    "ship+gptq": Recipe("ship", gptq=True),
    "distill": Recipe("distill"),
    "ship+text": Recipe("shiptext"),
    "gptq+ship": Recipe("from"),
    "gptq+ship+text": Recipe("fromtext"),
}
STANDARD = ("plain", "imatrix", "gptq", "ship", "ship+gptq", "distill", "gptq+ship")


@dataclass(frozen=True)
class File:
    """One file of a fine-tune, and how it is made."""

    quant: str
    recipe: str

    @property
    def max_size(self) -> str:
        """Of a type such as auto-80M, else empty."""
        return self.quant.removeprefix(AUTO) if self.quant.startswith(AUTO) else ""

    @property
    def how(self) -> Recipe:
        return RECIPES[self.recipe]

    @property
    def adapter(self) -> str:
        """Name of the adapter that it is exported from."""
        kind = self.how.adapter
        return kind if kind == "control" else f"{kind}-{self.quant}"

    @property
    def export(self) -> tuple[str, ...]:
        """Options of merge-export."""
        if self.max_size:
            return ("--quant", "auto", "--max-size", self.max_size)
        return ("--quant", self._name, *self.how.options)

    @property
    def path(self) -> Path:
        """Below the folder of a fine-tune."""
        if self.max_size:
            return Path(f"control-{self.quant}") / "auto.gguf"
        return Path(f"{self.adapter}-{self.recipe}") / f"{self._name}.gguf"

    @property
    def _name(self) -> str:
        return f"{GPTQ_PREFIX}{self.quant}" if self.how.gptq else self.quant

    def __str__(self) -> str:
        return f"{self.quant} {self.recipe}"


def files_of(types: Iterable[str], recipes: Sequence[str]) -> list[File]:
    """f16, and each recipe of each type that there is."""
    return [File("f16", "plain")] + [
        File(quant, recipe)
        for quant in types
        for recipe in (["plain"] if quant.startswith(AUTO) else recipes)
        if quant in CALIBRATED
        or not (RECIPES[recipe].gptq or RECIPES[recipe].adapter.startswith("from"))
    ]


@dataclass(frozen=True)
class Cell:
    """One fine-tune: a task and a seed."""

    suite: Suite
    seed: int
    out: Path

    def train(self, options: argparse.Namespace, files: Sequence[File]) -> None:
        """The first training, then one that goes on from it for each adapter that the files need."""
        common = ("--method", options.method, "--base", options.base, "--data", self.suite.train,
                  "--validation-data", self.suite.validation, "--batch-size", options.batch_size,
                  "--threads", options.threads)  # fmt: skip
        steps = options.steps or STEPS[self.suite.name]
        self._train("first", *common, "--steps", steps, "--seed", self.seed)
        more = ("--adapter", self.out / "first", "--steps", options.more_steps, "--seed",
                self.seed + 1000, "--learning-rate", options.more_rate)  # fmt: skip
        for name in dict.fromkeys(file.adapter for file in files):
            kind, _, quant = name.partition("-")
            ship = ("--ship", quant) if quant else ()
            distill = ("--ship-distill", options.distill) if kind == "distill" else ()
            text = ("--ship-text", options.ship_text) if kind.endswith("text") else ()
            begin = self._calibrated(options, quant) if kind.startswith("from") else ()
            self._train(name, *common, *more, *ship, *distill, *text, *begin)

    def _calibrated(self, options: argparse.Namespace, quant: str) -> tuple[Any, ...]:
        """Options of the training that begins with the first one's file by GPTQ."""
        path = self.out / "first-gptq" / f"{GPTQ_PREFIX}{quant}.gguf"
        if store.read_manifest(path) is None:
            edgeft("merge-export", "--adapter", self.out / "first", "--out", path.parent,
                   "--no-compare-live", "--calibration-tokens", options.calibration_tokens,
                   "--threads", options.threads, "--quant", f"{GPTQ_PREFIX}{quant}")  # fmt: skip
        return ("--ship-from", path, "--learning-rate", options.from_rate)

    def _train(self, name: str, *words: Any) -> None:
        if store.read_manifest(self.out / name) is None:
            edgeft("train", *words, "--output", self.out / name)

    def export(self, options: argparse.Namespace, files: Sequence[File]) -> None:
        for file in files:
            path = self.out / file.path
            if store.read_manifest(path) is None:
                edgeft("merge-export", "--adapter", self.out / file.adapter, "--out", path.parent,
                       "--no-compare-live", "--calibration-tokens", options.calibration_tokens,
                       "--threads", options.threads, *self._precision(file, files[0]), *file.export,
                       *(("--calibration-text", options.calibration_text) if file.how.text else ()))  # fmt: skip

    def _precision(self, file: File, first: File) -> tuple[str, ...]:
        """The values of the base that the first file of the same adapter was found best with."""
        manifest = store.read_manifest(self.out / first.path)
        other = file.adapter != first.adapter or "--base-precision" in file.export
        if manifest is None or other:
            return ()
        return ("--base-precision", manifest.facts["base_precision"]["chosen"])

    def measure(self, options: argparse.Namespace, files: Sequence[File]) -> None:
        """Write `FILE.json` beside each file: score of each item, and the divergences."""
        left = [file for file in files if not self._result(file).is_file()]
        if not left:
            return
        first = self.out / files[0].path
        suite = self.suite
        said = json.loads(
            edgeft("bench", *(self.out / file.path for file in left if file != files[0]),
                   "--baseline", first, "--items", suite.test, "--scorer", suite.scorer,
                   "--max-tokens", suite.max_tokens, "--text", options.text, "--chunks",
                   options.chunks, "--chats", suite.validation, "--no-speed", "--threads",
                   options.threads, "--json")
        )  # fmt: skip
        rows = {Path(row["path"]).resolve(): row for row in said["rows"]}
        for file in left:
            row = rows[(self.out / file.path).resolve()]
            write_text(self._result(file), json.dumps(row))

    def _result(self, file: File) -> Path:
        return (self.out / file.path).with_suffix(".json")

    def results(self, files: Sequence[File]) -> dict[str, dict[str, Any]]:
        """{file: row of `edgeft bench`} of those that are measured."""
        paths = {str(file): self._result(file) for file in files}
        return {
            name: json.loads(path.read_text(encoding="utf-8"))
            for name, path in paths.items()
            if path.is_file()
        }


@dataclass(frozen=True)
class Row:
    """One file of one task over all seeds."""

    task: str
    file: str
    accuracy: tuple[float, ...]
    """of each seed"""
    paired: Paired
    """with f16, the items of all seeds together"""
    outcomes: tuple[str, ...]
    """of each seed: what the gate says at `MARGIN`"""
    kl: float
    """from f16 on the validation chats, nats a token, mean over the seeds"""
    perplexity_ratio: float
    """to f16 on plain text, geometric mean over the seeds"""
    size: int
    """bytes"""


def rows_of(task: str, seeds: Sequence[Mapping[str, dict[str, Any]]]) -> list[Row]:
    """`seeds`: of each seed {file: row of `edgeft bench`}; files that not all seeds have are left out."""
    baseline = [seed[BASELINE]["score"]["values"] for seed in seeds]
    rows = []
    for name in [name for name in seeds[0] if all(name in seed for seed in seeds)]:
        runs = [seed[name] for seed in seeds]
        values = [run["score"]["values"] for run in runs]
        pairs = [Paired.count(*pair) for pair in zip(baseline, values, strict=True)]
        rows.append(
            Row(
                task=task, file=name,
                accuracy=tuple(statistics.mean(of) for of in values),
                paired=Paired.count(list(itertools.chain(*baseline)), list(itertools.chain(*values))),
                outcomes=tuple(judge(pair, MARGIN).outcome for pair in pairs),
                kl=statistics.mean(_fidelity(run, "chats", "kl", 0.0) for run in runs),
                perplexity_ratio=math.exp(statistics.mean(
                    math.log(_fidelity(run, "text", "perplexity_ratio", 1.0)) for run in runs
                )),
                size=runs[0]["size"],
            )
        )  # fmt: skip
    return rows


def _fidelity(run: dict[str, Any], text: str, figure: str, default: float) -> float:
    """A figure of a row of `edgeft bench`; `default` for the reference itself, which has none."""
    value = run["fidelity"].get(text, {}).get(figure, default)
    return float(value["value"] if isinstance(value, dict) else value)


def table(rows: Sequence[Row]) -> str:
    """One line a task and file, in Markdown."""
    head = ["task", "file", "MB", "accuracy", "of each seed", "to f16", "bounds", "PASS", "KL, chats",
            "perplexity, text"]  # fmt: skip
    body = [
        [row.task, row.file, f"{row.size / 1e6:.1f}", f"{statistics.mean(row.accuracy):.1%}",
         " ".join(f"{100 * of:.1f}" for of in row.accuracy),
         *_difference(row), f"{row.kl:.4f}", f"x {row.perplexity_ratio:.3f}"]
        for row in rows
    ]  # fmt: skip
    return tables.table(head, body)


def _difference(row: Row) -> list[str]:
    if row.file == BASELINE:
        return ["", "", ""]
    lower, upper = lower_bound(row.paired), upper_bound(row.paired)
    return [tables.points(row.paired.difference), f"{100 * lower:+.1f} to {100 * upper:+.1f}",
            f"{row.outcomes.count('PASS')} of {len(row.outcomes)}"]  # fmt: skip


def frontier(rows: Sequence[Row]) -> str:
    """Accuracy against bytes, mean over the seeds with their range, as an SVG file."""
    looks = {"PASS": "pass", "FAIL": "fail"}
    points = []
    for row in rows:
        outcome = worst_outcome(row.outcomes)
        look = "baseline" if row.file == BASELINE else looks.get(outcome, "inconclusive")
        name = row.file.removesuffix(" plain")
        points.append(plots.Point(name, row.size, statistics.mean(row.accuracy), look,
                                  min(row.accuracy), max(row.accuracy)))  # fmt: skip
    figure = plots.scatter(
        "frontier", f"{rows[0].task}: accuracy against bytes", points, format_bytes,
        lambda share: f"{share:.0%}", "size of the file", "accuracy",
        line=statistics.mean(rows[0].accuracy),
    )  # fmt: skip
    return plots.standalone(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="smollm2-135m", help="as for edgeft train")
    parser.add_argument("--method", default="qlora", help="as for edgeft train")
    parser.add_argument("--task", action="append", choices=list(STEPS), help="default: all")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--types", default="q4_0,q4_k_m", help="as for --ship")
    parser.add_argument("--recipes", default=",".join(STANDARD), help=f"of {', '.join(RECIPES)}")
    parser.add_argument("--steps", type=int, help="of the first training; default: by task")
    parser.add_argument("--more-steps", type=int, default=80, help="of the second training")
    parser.add_argument("--more-rate", type=float, default=2e-4, help="its learning rate")
    parser.add_argument("--from-rate", type=float, default=6e-4, help="of gptq+ship")
    parser.add_argument("--distill", type=float, default=0.5, help="as for --ship-distill")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--calibration-tokens", type=int, default=16384)
    parser.add_argument("--calibration-text", type=Path, help="another one than --text")
    parser.add_argument("--ship-text", type=Path, help="another one than --text, or auto")
    parser.add_argument("--text", type=Path, required=True, help="plain text for the perplexity")
    parser.add_argument("--chunks", type=int, default=8, help="of 512 tokens of the text")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--report", action="store_true", help="only print what is measured")
    parser.add_argument("--plot", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    recipes = options.recipes.split(",")
    if any(RECIPES[recipe].text for recipe in recipes) and not options.calibration_text:
        parser.error("gptq+text needs --calibration-text")
    if (
        any(RECIPES[recipe].adapter.endswith("text") for recipe in recipes)
        and not options.ship_text
    ):
        parser.error("ship+text and gptq+ship+text need --ship-text")
    files = files_of(options.types.split(","), recipes)
    tasks = options.task or list(STEPS)
    suites = [
        load_suite(name) if name == SMART_HOME else write_task(name, options.out / "tasks")
        for name in tasks
    ]
    cells = {
        suite.name: [
            Cell(suite, seed, options.out / f"{suite.name}-{seed}")
            for seed in map(int, options.seeds.split(","))
        ]
        for suite in suites
    }
    if not options.report:
        check_options(options, RECORDED)
        for cell in itertools.chain(
            *zip(*cells.values(), strict=True)
        ):  # each task's first seed first
            cell.out.mkdir(parents=True, exist_ok=True)
            cell.train(options, files)
            cell.export(options, files)
            cell.measure(options, files)
            print(table(rows_of(cell.suite.name, [cell.results(files)])), flush=True)
    rows = []
    for name, of_task in cells.items():
        seeds = [results for cell in of_task if BASELINE in (results := cell.results(files))]
        rows += rows_of(name, seeds) if seeds else []
    print(table(rows))
    for task in {row.task for row in rows} if options.plot else ():
        options.plot.mkdir(parents=True, exist_ok=True)
        write_text(
            options.plot / f"{task}.svg", frontier([row for row in rows if row.task == task])
        )
    print(json.dumps({"study": "ship_recipes", "base": options.base, "method": options.method,
                      "rows": [asdict(row) for row in rows]}))  # fmt: skip


if __name__ == "__main__":
    main()
