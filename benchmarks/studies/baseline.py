"""Tasks -> the word of `edgeft baseline`, and what a training then brings: one table.

    python -m edgeft.benchmarks.studies.baseline --out build/baseline

For the embedded suite and each task of `studies/tasks`: `edgeft baseline` on the validation split, the way to
ask that decided once more on rows of the test split, `edgeft train-qlora`, `edgeft merge-export`, and
`edgeft bench` on the test split. The word agrees where the test rows say the same: a fine-tune is needed where
the base misses the target, and then it scores more than the base; else the base reaches the target. A
training, an export and answers that are complete are kept. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeft import machine, store
from edgeft.benchmarks.statistics.noninferiority import wilson
from edgeft.benchmarks.studies.forgetting import edgeft
from edgeft.benchmarks.studies.tasks import TASKS, write_task
from edgeft.benchmarks.suites import Suite, load_suite, suite_names
from edgeft.files import write_text
from edgeft.report import tables

STEPS = {
    "smart_home": 320, "support_intents": 320, "order_extract": 200, "order_number": 100,
    "tool_calls": 300,
}  # fmt: skip
"""of a training, 4 rows each: 1 to 1.3 passes"""
QUANTS = ("f16", "q8_0", "q4_k_m", "q4_0", "gptq-q4_0")


@dataclass(frozen=True)
class Row:
    """One task."""

    task: str
    target: float
    word: str
    proven: bool
    reasons: Sequence[str]
    way: str
    """how the base was asked in the attempt that decided"""
    score: float
    """of that attempt, on the validation split"""
    interval: tuple[float, float]
    """of `score`, at 95 %"""
    confirmed: float
    """score of the same way on rows of the test split"""
    trained: Mapping[str, float]
    """type of the fine-tune's file -> accuracy on the test split"""
    trained_interval: tuple[float, float]
    """of the first type, at 95 %"""

    @property
    def agrees(self) -> bool:
        """Whether test rows say what the word says."""
        if self.word != "fine-tune":
            return self.confirmed >= self.target
        return self.confirmed < self.target and self.trained_interval[0] > self.confirmed


def measure(name: str, options: argparse.Namespace) -> Row:
    """Ask, train, export and ask again; a command that fails ends the study."""
    suite = load_suite(name) if name in suite_names() else write_task(name, options.out / "tasks")
    out: Path = options.out / name
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "instructions.txt", suite.instructions)
    threads = ("--threads", options.threads) if options.threads else ()
    scored = ("--scorer", suite.scorer, "--max-tokens", suite.max_tokens, *threads)
    asked = ("baseline", "--base", options.base, "--few-shot-data", suite.train,
             "--instructions", out / "instructions.txt", "--target", options.target,
             "--limit", options.limit, *scored, "--json")  # fmt: skip
    said = json.loads(
        edgeft(*asked, "--validation-data", suite.validation, "--shots", options.shots)
    )
    way = said["advice"]["attempt"]["few_shot"]
    again = json.loads(
        edgeft(*asked, "--validation-data", suite.test, "--shots", way["shots"],
               "--pick", way["pick"])
    )  # fmt: skip
    trained = _trained(suite, out, options, threads)
    answers = json.loads(
        edgeft("bench", *trained[1:], "--baseline", trained[0], "--items", suite.test, "--no-speed",
               *scored, "--json")
    )  # fmt: skip
    return row_of(suite.name, said, again, values_of(answers))


def _trained(suite: Suite, out: Path, options: argparse.Namespace, threads: Any) -> list[Path]:
    """The files of the fine-tune, one for each of QUANTS."""
    adapter = out / "adapter"
    if store.read_manifest(adapter) is None:
        edgeft("train-qlora", "--base", options.base, "--data", suite.train,
               "--validation-data", suite.validation, "--output", adapter,
               "--steps", options.steps or STEPS[suite.name], "--batch-size", 4, *threads)  # fmt: skip
    edgeft(
        "merge-export", "--adapter", adapter, "--out", out, "--quant", ",".join(QUANTS), *threads
    )
    return [out / f"{quant}.gguf" for quant in QUANTS]


def values_of(bench: dict[str, Any]) -> dict[str, list[float]]:
    """The JSON of `edgeft bench` -> {type: score of each item}, in the order of QUANTS."""
    values = {Path(row["path"]).stem: row["score"]["values"] for row in bench["rows"]}
    return {quant: values[quant] for quant in QUANTS}


def row_of(
    name: str, said: dict[str, Any], again: dict[str, Any], values: Mapping[str, Sequence[float]]
) -> Row:
    """`said`, `again`: the JSON of `edgeft baseline`, of all attempts and of the one on test rows."""
    advice, attempt = said["advice"], said["advice"]["attempt"]
    way = attempt["few_shot"]
    return Row(
        task=name, target=said["target"], word=advice["word"], proven=advice["proven"],
        reasons=advice["reasons"], way=f"{way['shots']} {way['pick']}" if way["shots"] else "none",
        score=attempt["accuracy"], interval=tuple(attempt["interval"]),
        confirmed=again["attempts"][0]["accuracy"],
        trained={quant: sum(of) / len(of) for quant, of in values.items()},
        trained_interval=wilson(int(sum(values[QUANTS[0]])), len(values[QUANTS[0]])),
    )  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """One line a task, in Markdown."""
    head = ["task", "word", "examples", "validation", "95 %", "to the target", "test, untrained",
            *(f"test, {quant}" for quant in QUANTS), "agrees"]  # fmt: skip
    body = [
        [row.task, row.word + ("" if row.proven else " (not proven)"), row.way, f"{row.score:.1%}",
         f"{row.interval[0]:.1%} to {row.interval[1]:.1%}", tables.points(row.score - row.target),
         f"{row.confirmed:.1%}", *(f"{row.trained[quant]:.1%}" for quant in QUANTS),
         "yes" if row.agrees else "no"]
        for row in rows
    ]  # fmt: skip
    return tables.table(head, body)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="smollm2-135m", help="as for edgeft train")
    parser.add_argument(
        "--task", action="append", choices=["smart_home", *TASKS], help="default: all"
    )
    parser.add_argument("--target", type=float, default=0.9)
    parser.add_argument(
        "--limit", type=int, default=100, help="rows that the untrained base is asked, per split"
    )
    parser.add_argument("--shots", default="0,4,8", help="as for edgeft baseline")
    parser.add_argument("--steps", type=int, help="of each training; default: 100 to 320 by task")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows = []
    for name in options.task or ["smart_home", *TASKS]:
        rows.append(measure(name, options))
        print("\n".join([name, *rows[-1].reasons]), file=sys.stderr, flush=True)
    print(table(rows))
    results = [asdict(row) | {"agrees": row.agrees} for row in rows]
    print(json.dumps({"machine": machine.describe_machine(), "rows": results}))


if __name__ == "__main__":
    main()
