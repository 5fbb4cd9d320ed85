"""Objectives of alignment from one SFT adapter -> effect with its interval, distance, forgetting, cost: one table.

    python -m edgeft.benchmarks.studies.alignment --out build/alignment --text wiki.test.raw

The embedded task is cut in two: an adapter is trained on the first half of its rows (SFT), and every objective
goes on from it with the second half, as pairs (the answer against itself with one field changed), as labelled
answers, or as prompts with `--reward`. Of what it has not seen, the test split, are measured:

    pairs       share of pairs whose better answer gains on the worse one, against the SFT adapter, and the mean
                difference of the gains in nats; for `reward` accuracy and margin of the scores
    reward      mean reward of an answer that is sampled to each prompt, and its paired difference from SFT's
    KL          from the SFT adapter, of those answers, nats a token
    task        greedy answers that are right, and their paired difference from SFT's
    text        perplexity of plain text over SFT's
    cost        seconds of the steps, and the largest anonymous memory of the process

Every value but the last two is of the exported f16 file. What is complete is not repeated. Each cell prints a
JSON line as it ends; the last line holds all. --report prints what is there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft import machine, store
from edgeft.benchmarks.statistics.noninferiority import Paired, lower_bound, upper_bound
from edgeft.benchmarks.studies.aligned_answers import (
    answer_of,
    kl,
    mean,
    pair_log_probabilities,
    sampled,
    share,
    worse,
)
from edgeft.benchmarks.studies.forgetting import edgeft
from edgeft.benchmarks.studies.measured_process import run
from edgeft.benchmarks.studies.recorded_options import check_options
from edgeft.benchmarks.suites import Suite, load_suite
from edgeft.data.rows import load_examples
from edgeft.errors import EdgeftError
from edgeft.files import write_text
from edgeft.progress import say
from edgeft.records import Example
from edgeft.report import tables
from edgeft.runtimes.protocol import open_runtime
from edgeft.train.rewards import load_rewards

SUITE = "smart_home"
SFT = "sft"


@dataclass(frozen=True)
class Recipe:
    """How one objective trains, where the command line says nothing else."""

    data: str
    """of the files of `write_data`: "pairs", "verdicts" or "prompts" """
    rate: float
    """learning rate"""
    steps: int
    batch: int
    """pairs or answers a step"""
    generations: int = 0
    """answers to a prompt; 0 where none are written"""


RECIPES = {
    "dpo": Recipe("pairs", 5e-5, 20, 8),
    "kto": Recipe("verdicts", 5e-5, 20, 16),
    "orpo": Recipe("pairs", 2e-4, 20, 8),
    "simpo": Recipe("pairs", 5e-5, 20, 8),
    "reward": Recipe("pairs", 1e-3, 20, 8),
    "grpo": Recipe("prompts", 2e-4, 40, 32, generations=8),
    "rloo": Recipe("prompts", 2e-4, 40, 32, generations=8),
    "ppo": Recipe("prompts", 1e-4, 48, 32, generations=1),
}
"""objective -> its recipe"""
RECORDED = ("base", "sft_steps", "steps", "learning_rate", "reward", "generations", "items", "text",
            "chunks", "seed")  # fmt: skip
"""options that all results of a folder share"""


def write_data(suite: Suite, out: Path, seed: int, items: int) -> None:
    """sft.jsonl, pairs.jsonl, verdicts.jsonl and prompts.jsonl of the training rows; held_out.jsonl of the first
    `items` of the test."""
    rng = random.Random(seed)
    train, test = (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in (suite.train, suite.test)
    )
    rng.shuffle(train)
    answers = [answer_of(row) for row in train]
    half = len(train) // 2
    pairs, held_out = (
        [_pair(row, worse(row, answers, rng)) for row in rows]
        for rows in (train[half:], test[:items])
    )
    verdicts = [
        {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
        for pair in pairs
        for side in ("chosen", "rejected")
    ]
    files = {"sft": train[:half], "pairs": pairs, "verdicts": verdicts, "prompts": train[half:],
             "held_out": held_out}  # fmt: skip
    for name, rows in files.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_text(out / f"{name}.jsonl", "".join(lines))


def _pair(row: dict[str, Any], rejected: str) -> dict[str, str]:
    prompt, answer = (message["content"] for message in row["messages"])
    return {"prompt": prompt, "chosen": answer, "rejected": rejected}


@dataclass(frozen=True)
class Cell:
    """One objective with one method."""

    objective: str
    method: str
    options: argparse.Namespace

    @property
    def folder(self) -> Path:
        root: Path = self.options.out
        return root / self.method / self.objective

    @property
    def file(self) -> Path:
        """The exported artifact."""
        return self.folder / "f16.gguf"

    @property
    def result(self) -> Path:
        return self.folder / "cell.json"

    @property
    def start(self) -> Cell:
        """The SFT that it goes on from."""
        return Cell(SFT, self.method, self.options)

    def train(self) -> None:
        """The adapter, and its cost in train.json."""
        options, out = self.options, self.options.out
        if store.read_manifest(self.folder / "adapter"):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        common = ("--method", self.method, "--base", options.base, "--save-every", 0, "--seed",
                  options.seed, "--threads", options.threads, "--output", self.folder / "adapter",
                  "--validation-size", 0)  # fmt: skip
        if self.objective == SFT:
            words: tuple[Any, ...] = ("--data", out / "sft.jsonl", "--steps", options.sft_steps)
        else:
            recipe = RECIPES[self.objective]
            words = (
                "--objective", self.objective, "--adapter", self.start.folder / "adapter", "--data",
                out / f"{recipe.data}.jsonl", "--steps", options.steps or recipe.steps,
                "--batch-size", recipe.batch, "--micro-batch-size", recipe.batch,
                "--learning-rate", options.learning_rate or recipe.rate,
            )  # fmt: skip
            if recipe.data == "prompts":
                generations = options.generations or recipe.generations
                words += ("--reward", options.reward, "--generations", generations,
                          "--max-new-tokens", load_suite(SUITE).max_tokens)  # fmt: skip
        command = [sys.executable, "-P", "-m", "edgeft", "train", *map(str, (*common, *words))]
        step = run(command)
        write_text(self.folder / "train.json", json.dumps({"anonymous": step.anonymous}))

    def export(self) -> None:
        if self.objective != "reward" and store.read_manifest(self.file) is None:
            edgeft("merge-export", "--adapter", self.folder / "adapter", "--out", self.folder,
                   "--quant", "f16", "--base-precision", "stored", "--no-compare-live")  # fmt: skip

    def bench(self) -> dict[str, Any]:
        """The row of `edgeft bench` against the SFT, kept in bench.json."""
        path, options, suite = self.folder / "bench.json", self.options, load_suite(SUITE)
        if not path.is_file():
            words: tuple[Any, ...] = (
                "--items", suite.test, "--scorer", suite.scorer, "--limit", options.items,
                "--max-tokens", suite.max_tokens, "--threads", options.threads,
            )  # fmt: skip
            if self.objective != SFT:
                words += ("--baseline", self.start.file, "--text", options.text, "--chunks",
                          options.chunks)  # fmt: skip
            said = json.loads(edgeft("bench", self.file, *words, "--no-speed", "--json"))
            (row,) = (r for r in said["rows"] if Path(r["path"]).resolve() == self.file.resolve())
            write_text(path, json.dumps(row))
        row_of: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return row_of

    def answers(self) -> dict[str, list[Any]]:
        """Log-probabilities of the held-out pairs, and of sampled answers rewards and KL; in answers.json."""
        path, options = self.folder / "answers.json", self.options
        if not path.is_file():
            pairs = held_out(options.out / "held_out.jsonl")
            prompts, tokens = [better for better, _ in pairs], load_suite(SUITE).max_tokens
            say(f"{self.method} {self.objective}: {len(pairs)} held-out pairs and prompts")
            with open_runtime(self.file, threads=options.threads) as model:
                (rate,) = load_rewards([options.reward], model.encode)
                written = sampled(model, prompts, tokens)
                rewards = rate(
                    completions=[one.text for one in written],
                    answer=[example.answer for example in prompts],
                )
                measured: dict[str, list[Any]] = {
                    "pairs": [list(pair) for pair in pair_log_probabilities(model, pairs)],
                    "rewards": list(rewards),
                    "kl": [],
                }
                if self.objective != SFT:
                    with open_runtime(self.start.file, threads=options.threads) as reference:
                        measured["kl"] = kl(model, reference, written)
            write_text(path, json.dumps(measured))
        values: dict[str, list[Any]] = json.loads(path.read_text(encoding="utf-8"))
        return values

    def scores(self) -> list[tuple[float, float]]:
        """Of a reward model: the scores of each held-out pair."""
        path = self.folder / "scores.json"
        if not path.is_file():
            data = self.options.out / "held_out.jsonl"
            write_text(
                path,
                edgeft("score", "--model", self.folder / "adapter", "--data", data, "--json"),
            )
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        return [(row["chosen"], row["rejected"]) for row in rows]

    def measure(self) -> dict[str, Any]:
        """Do what is missing, and write cell.json: the row of the table."""
        self.train()
        self.export()
        manifest = store.read_manifest(self.folder / "adapter")
        assert manifest is not None
        cost = json.loads((self.folder / "train.json").read_text(encoding="utf-8"))
        row = {
            "objective": self.objective, "method": self.method, "steps": manifest.facts["steps"],
            "seconds": manifest.facts["seconds"], "anonymous_mb": cost["anonymous"] / 1e6,
            "learning_rate": manifest.options["learning_rate"],
        }  # fmt: skip
        row |= reward_figures(self.scores()) if self.objective == "reward" else self._figures()
        write_text(self.result, json.dumps(row))
        return row

    def _figures(self) -> dict[str, Any]:
        bench, answers = self.bench(), self.answers()
        figures = {
            "preferred": share([a > b for a, b in answers["pairs"]]),
            "reward": mean(answers["rewards"]),
        }
        values = bench["score"]["values"]
        figures["task"] = share([value == 1 for value in values])
        if self.objective == SFT:
            return figures
        before, start = self.start.bench()["score"]["values"], self.start.answers()
        return (
            figures
            | difference_figures(start, answers, before, values)
            | {"perplexity_ratio": bench["fidelity"]["text"]["perplexity_ratio"]}
        )


def held_out(path: Path) -> list[tuple[Example, Example]]:
    """The pairs of the file as two conversations each."""
    pairs = load_examples(path, layout="pairs")
    return [
        (pair, dataclasses.replace(pair, messages=pair.rejected, rejected=())) for pair in pairs
    ]


def reward_figures(scores: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Accuracy and margin of a reward model on pairs."""
    return {
        "pair_accuracy": share([better > worse for better, worse in scores]),
        "pair_margin": mean([better - worse for better, worse in scores]),
    }


def difference_figures(
    start: dict[str, list[Any]],
    end: dict[str, list[Any]],
    right_before: Sequence[float],
    right: Sequence[float],
) -> dict[str, Any]:
    """What changed between two measurements of the same held-out rows, each with its interval."""  # fmt: skip
    gains = [
        (after[0] - before[0], after[1] - before[1])
        for before, after in zip(start["pairs"], end["pairs"], strict=True)
    ]
    rewards = zip(start["rewards"], end["rewards"], strict=True)
    paired = Paired.count([v == 1 for v in right_before], [v == 1 for v in right])
    return {
        "pair_accuracy": share([better > worse for better, worse in gains]),
        "pair_margin": mean([better - worse for better, worse in gains]),
        "chosen_gain": mean([better for better, _ in gains]),
        "reward_difference": mean([after - before for before, after in rewards]),
        "kl": mean(end["kl"]),
        "task_difference": (paired.difference, lower_bound(paired), upper_bound(paired)),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """One line a cell, in Markdown; intervals are 95 %, those of the task's difference one-sided."""
    head = ["objective", "method", "steps", "minutes", "memory", "pair accuracy", "pair margin",
            "better answer", "reward", "reward gain", "KL", "task", "task difference", "text"]  # fmt: skip
    return tables.table(head, [_line(row) for row in rows])


def _line(row: dict[str, Any]) -> list[str]:
    def cell(name: str, style: Callable[[float], str], bounds: bool = True) -> str:
        if name not in row:
            return ""
        value, low, high = row[name]
        return style(value) + (f" ({style(low)} to {style(high)})" if bounds else "")

    def percent(value: float) -> str:
        return f"{100 * value:.1f}"

    def signed(value: float) -> str:
        return f"{value:+.3f}"

    ratio = f"x {row['perplexity_ratio']:.3f}" if "perplexity_ratio" in row else ""
    return [
        row["objective"], row["method"], str(row["steps"]), f"{row['seconds'] / 60:.1f}",
        f"{row['anonymous_mb']:.0f} MB", cell("pair_accuracy", percent), cell("pair_margin", signed),
        cell("chosen_gain", signed, bounds=False), cell("reward", "{:.3f}".format, bounds=False),
        cell("reward_difference", signed), cell("kl", "{:.4f}".format, bounds=False),
        cell("task", percent, bounds=False),
        cell("task_difference", lambda value: f"{100 * value:+.1f}"), ratio,
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="smollm2-135m", help="as for edgeft train")
    parser.add_argument("--method", action="append", help="with LoRA matrices; default: lora")
    parser.add_argument("--objective", action="append", choices=list(RECIPES), help="default: all")
    parser.add_argument("--sft-steps", type=int, default=40, help="of 8 rows, before all others")
    parser.add_argument("--steps", type=int, help="of each objective; default: its recipe's")
    parser.add_argument("--learning-rate", type=float, help="default: the recipe's")
    parser.add_argument(
        "--reward", default="fields", help="as for edgeft train: one that is no model"
    )
    parser.add_argument(
        "--generations", type=int, help="answers to a prompt; default: the recipe's"
    )
    parser.add_argument("--items", type=int, default=200, help="held-out rows")
    parser.add_argument("--text", type=Path, required=True, help="plain text for the perplexity")
    parser.add_argument("--chunks", type=int, default=8, help="of 512 tokens of the text")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", action="store_true", help="only print what is measured")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    cells = [
        Cell(objective, method, options)
        for method in options.method or ["lora"]
        for objective in (SFT, *(options.objective or RECIPES))
    ]
    if not options.report:
        options.out.mkdir(parents=True, exist_ok=True)
        check_options(options, RECORDED)
        write_data(load_suite(SUITE), options.out, options.seed, options.items)
        for cell in cells:
            print(json.dumps(cell.measure()), flush=True)
    rows = [json.loads(cell.result.read_text()) for cell in cells if cell.result.is_file()]
    print(table(rows))
    print(json.dumps({"study": "alignment", "base": options.base, "rows": rows,
                      "machine": machine.describe_machine()}))  # fmt: skip


if __name__ == "__main__":
    try:
        main()
    except EdgeftError as error:
        sys.exit(f"error: {error}")
