"""A base, methods and replay data -> what each fine-tune gains on a task, and what it forgets.

    python -m edgeft.benchmarks.studies.forgetting --base smollm2-135m --out build/forgetting \\
        --method lora --method full --method freeze --replay-prompts alpaca_en_demo.json

Each method trains twice with the same steps: on the rows of the task alone, and on the same rows with a
share of replay rows mixed in. A replay row is a prompt of `--replay-prompts` with the base's own greedy
answer (self-synthesized rehearsal: J. Huang et al., ACL 2024, arXiv 2403.01244), so that nothing new is
taught. The answers in the file are not read; a prompt of the general suite is left out. Every fine-tune
is exported and asked by `edgeft ab --general`, the test split of the task and the general suite; the table
is of its f16 file. A run that is complete is not repeated. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeft import store
from edgeft.benchmarks.quality.fewshot import question
from edgeft.benchmarks.suites import Suite, load_suite
from edgeft.data.rows import load_examples
from edgeft.files import write_text
from edgeft.records import EXIT_CODES, Example, Limits
from edgeft.report import tables
from edgeft.runtimes.protocol import open_runtime

REPLAY_TOKENS = 128
"""of a replay answer at most; longer ones are left out, because they do not end"""


def replay_rows(base: Path, prompts: Sequence[Example], threads: int | None) -> list[str]:
    """JSON rows of the prompts (without system turns) with the base's answers, where they end."""
    with open_runtime(base, threads=threads) as model:
        turns = [[m for m in example.prompt if m.role != "system"] for example in prompts]
        ids = [model.encode(model.chat.render(messages)) for messages in turns]
        replies = model.replies(ids, Limits(max_tokens=REPLAY_TOKENS))
    rows = []
    for messages, reply in zip(turns, replies, strict=True):
        if reply.stopped and reply.text.strip():
            said = [{"role": message.role, "content": message.content} for message in messages]
            answer = {"role": "assistant", "content": reply.text}
            rows.append(json.dumps({"messages": [*said, answer]}, ensure_ascii=False))
    return rows


def mixed(task: Sequence[str], replay: Sequence[str], share: float, seed: int) -> list[str]:
    """All rows of the task, and so many replay rows that they are `share` of the whole, shuffled.

    ValueError where there are too few replay rows.
    """
    count = round(len(task) * share / (1 - share))
    if count > len(replay):
        raise ValueError(f"{count} replay rows are needed, there are {len(replay)}")
    rng = random.Random(seed)
    rows = [*task, *rng.sample(list(replay), count)]
    rng.shuffle(rows)
    return rows


def prompts_of(path: Path, count: int, seed: int) -> list[Example]:
    """`count` examples of a data file in random order, without those that the general suite asks."""
    asked = {question(example) for example in load_examples(load_suite("general").test)}
    examples = [e for e in load_examples(path, "skip") if question(e) not in asked]
    random.Random(seed).shuffle(examples)
    return examples[:count]


def edgeft(*words: Any) -> str:
    """Run a command as a user would; its stdout. A failure ends the study."""
    command = [sys.executable, "-P", "-m", "edgeft", *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in EXIT_CODES.values():
        sys.exit(f"failed: {' '.join(command)}")
    return done.stdout


def fine_tune(options: argparse.Namespace, method: str, data: Path, suite: Suite) -> Path:
    """Train and export; the folder with f16.gguf and q8_0.gguf."""
    out = data.parent / f"{method}-{data.stem}"
    trained = out / "trained"
    if store.read_manifest(trained) is None:
        edgeft("train", "--method", method, "--base", options.base, "--data", data,
               "--validation-data", suite.validation, "--output", trained,
               "--steps", options.steps, "--batch-size", options.batch_size,
               "--micro-batch-size", options.batch_size, "--seed", options.seed)  # fmt: skip
    manifest = store.read_manifest(trained)
    assert manifest is not None
    kind = "--base" if manifest.kind == "base" else "--adapter"
    edgeft("merge-export", kind, trained, "--out", out, "--quant", "f16,q8_0")
    return out


def compare(base: Path, tuned: Path, task: str) -> dict[str, Any]:
    """The f16 file of a fine-tune on the task, and what it forgot: of `forgetting` in report.json."""
    release = json.loads(
        edgeft("ab", tuned / "q8_0.gguf", tuned / "f16.gguf", "--items", task, "--base", base,
               "--shots", 0, "--general", "--json")
    )  # fmt: skip
    (accuracy,) = (arm["accuracy"] for arm in release["arms"] if arm["kind"] == "baseline")
    forgotten: dict[str, Any] = release["forgetting"]["arms"]["f16.gguf"]
    return {"task": accuracy} | forgotten


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="smollm2-135m", help="as for edgeft train")
    parser.add_argument("--task", default="smart_home", help="embedded suite to fine-tune on")
    parser.add_argument("--method", action="append", help="default: lora, full and freeze")
    parser.add_argument("--replay-prompts", type=Path, required=True, help="general instructions")
    parser.add_argument("--replay-share", type=float, default=0.2, help="of the training rows")
    parser.add_argument("--steps", type=int, default=320, help="of each training")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    suite = load_suite(options.task)
    edgeft("merge-export", "--base", options.base, "--out", options.out / "base", "--quant", "f16")
    base = options.out / "base" / "f16.gguf"
    rows = suite.train.read_text(encoding="utf-8").splitlines()
    count = 2 * round(len(rows) * options.replay_share / (1 - options.replay_share))
    replay_file = options.out / "answers.jsonl"  # of the base; replay.jsonl is the mix
    if not replay_file.is_file():
        prompts = prompts_of(options.replay_prompts, count, options.seed)
        write_text(replay_file, "\n".join(replay_rows(base, prompts, options.threads)) + "\n")
    replay = replay_file.read_text(encoding="utf-8").splitlines()
    data = {
        "alone": rows,
        "replay": mixed(rows, replay, options.replay_share, options.seed),
    }
    results: dict[str, dict[str, Any]] = {}
    for method in options.method or ["lora", "full", "freeze"]:
        for name, lines in data.items():
            write_text(options.out / f"{name}.jsonl", "\n".join(lines) + "\n")
            tuned = fine_tune(options, method, options.out / f"{name}.jsonl", suite)
            results[f"{method}, {name}"] = compare(base, tuned, options.task)
    print(table(results))
    print(json.dumps({"steps": options.steps, "share": options.replay_share, "runs": results}))


def table(results: dict[str, dict[str, Any]]) -> str:
    """One row per run: accuracy and gain on the task, then the paired loss on the general items."""
    head = ["training", "task", "gain", "general", "lost", "won", "difference", "bounds"]
    body = [
        [name, f"{one['task']:.1%}", tables.points(one["gain"]), f"{one['accuracy']:.1%}",
         str(one["lost"]), str(one["won"]), tables.points(one["difference"]),
         f"{100 * one['lower']:+.1f} to {100 * one['upper']:+.1f}"]
        for name, one in results.items()
    ]  # fmt: skip
    return tables.table(head, body)


if __name__ == "__main__":
    main()
